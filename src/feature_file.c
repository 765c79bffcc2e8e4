/* feature_file.c - the state of feature.h as a file of the user's. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "feature.h"

enum { MAX_PATH = 1024 };

/* $XDG_CACHE_HOME/dibit/features or ~/.cache/dibit/features */
static int find_path(char out[MAX_PATH], const char *given, DibitError *err) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n;
    if (given)
        n = snprintf(out, MAX_PATH, "%s", given);
    else if (cache && cache[0] == '/')
        n = snprintf(out, MAX_PATH, "%s/dibit/features", cache);
    else if (home && home[0] == '/')
        n = snprintf(out, MAX_PATH, "%s/.cache/dibit/features", home);
    else
        return fail(err, DIBIT_E_IO, "no home folder to keep the record of features in");
    return n < MAX_PATH ? 0 : fail(err, DIBIT_E_ARGUMENT, "a path of %d bytes is too long", n);
}

int features_open(Features *f, const char *path, const char *stamp, const DibitLogger *logger,
                  DibitError *err) {
    char name[MAX_PATH];
    struct stat st;
    FileMap map;
    int r = features_init(f, stamp, logger, err);
    if (r == 0) r = find_path(name, path, err);
    if (r != 0) return r;
    if (stat(name, &st) != 0 && (errno == ENOENT || errno == ENOTDIR)) return 0;
    r = file_map(&map, name, true, NULL, err);
    if (r != 0) return r;
    features_load(f, (const char *)map.data, map.size);
    file_unmap(&map);
    return 0;
}

/* The folders above the file; those that are there stay as they are. */
static void make_folders(char *path) {
    for (char *p = path + 1; *p; p++) {
        if (*p != '/') continue;
        *p = 0;
        mkdir(path, 0700); /* a failure shows when the file is written */
        *p = '/';
    }
}

int features_save(const Features *f, const char *path, DibitError *err) {
    char name[MAX_PATH];
    FileOut out;
    int r = find_path(name, path, err);
    if (r != 0) return r;
    size_t n = features_text(f, NULL, 0);
    char *text = n ? mem_alloc(NULL, n + 1) : NULL;
    if (!text) return fail(err, DIBIT_E_MEMORY, "no memory for the record of features");
    features_text(f, text, n + 1);
    make_folders(name);
    r = file_create(&out, name, err);
    if (r == 0 && (r = file_write(&out, text, n, err)) != 0) file_abort(&out);
    if (r == 0) r = file_commit(&out, err);
    mem_free(NULL, text);
    return r;
}

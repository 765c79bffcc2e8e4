/* regression_driver.c - runs a fuzz target on saved inputs, without libFuzzer: any compiler builds
 * it, and every test run replays what fuzzing once found. Arguments: files and folders. */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay_file(const char *path) {
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!f || fstat(fileno(f), &st) != 0) {
        perror(path);
        exit(1);
    }
    size_t size = (size_t)st.st_size;
    uint8_t *data = malloc(size ? size : 1); /* exactly as long, so that a sanitizer sees the end */
    if (!data || fread(data, 1, size, f) != size) {
        fprintf(stderr, "%s: cannot read it\n", path);
        exit(1);
    }
    fclose(f);
    fprintf(stderr, "%s\n", path); /* the last line names the input that failed */
    LLVMFuzzerTestOneInput(data, size);
    free(data);
    return 1;
}

static int replay(const char *path) {
    struct stat st;
    if (stat(path, &st) != 0) return 0;
    if (!S_ISDIR(st.st_mode)) return replay_file(path);
    struct dirent **list;
    int n = scandir(path, &list, NULL, alphasort), count = 0;
    for (int i = 0; i < n; i++) {
        char name[4096];
        snprintf(name, sizeof name, "%s/%s", path, list[i]->d_name);
        if (list[i]->d_name[0] != '.') count += replay(name);
        free(list[i]);
    }
    if (n >= 0) free(list);
    return count;
}

int main(int argc, char **argv) {
    int n = 0;
    for (int i = 1; i < argc; i++) n += replay(argv[i]);
    if (n == 0) {
        fprintf(stderr, "no inputs\n");
        return 1;
    }
    printf("%d inputs replayed\n", n);
    return 0;
}

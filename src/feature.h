/* feature.h - what has failed on this device: each feature counts its attempts and failures, and
 * one that fails too often is left alone from then on; each operation keeps its last times. The
 * state is a text that survives reloads (of a browser) or runs (of the program) and is thrown away
 * when the version it was made with changes. */
#ifndef FEATURE_H
#define FEATURE_H
#include "base.h"

enum { FEATURES_MAX = 32, FEATURES_OPS = 32, FEATURES_HISTORY = 10, FEATURES_NAME = 32 };

typedef struct FeatureState {
    char name[FEATURES_NAME]; /* letters, digits and "_-." */
    bool enabled;
    int64_t attempts, failures; /* successes count as attempts */
} FeatureState;

typedef struct FeatureOp {
    char name[FEATURES_NAME];
    int n;
    double ms[FEATURES_HISTORY]; /* the oldest first */
} FeatureOp;

typedef struct Features {
    char stamp[96]; /* "chrome 151": browser or program, and its version */
    char note[160]; /* why a state that was given is not used, or "" */
    FeatureState feature[FEATURES_MAX];
    FeatureOp op[FEATURES_OPS];
    int n_features, n_ops;
    DibitLogger logger;
} Features;

/* Nothing has failed yet. logger may be NULL. */
int features_init(Features *f, const char *stamp, const DibitLogger *logger, DibitError *err);
/* Takes over a state that features_text() made. One of another stamp or a damaged one leaves f as
 * it was, with a note, and is logged; that is no error. Returns whether it was taken. */
bool features_load(Features *f, const char *text, size_t n);

/* Whether a feature may be tried; one that was never tried may. */
bool features_enabled(const Features *f, const char *name);
/* Whether it was tried and did not always fail. */
bool features_worked(const Features *f, const char *name);
/* After an attempt. Returns 1 when this failure disabled it (failed more than half of at least
 * three times), else 0, or DIBIT_E_ARGUMENT for a bad name. Where there is no room the oldest that
 * is enabled is forgotten; DIBIT_E_ARGUMENT where none is. */
int features_result(Features *f, const char *name, bool ok, DibitError *err);
/* An operation took so many milliseconds. Where there is no room the oldest one is forgotten. */
int features_time(Features *f, const char *op, double ms, DibitError *err);
/* What it took last, or -1. */
double features_last_ms(const Features *f, const char *op);
/* Comma-separated names of what is disabled, for PlanRequest. Returns the full length. */
size_t features_disabled(const Features *f, char *out, size_t cap);
/* The state, terminated when cap > 0. Returns the full length. */
size_t features_text(const Features *f, char *out, size_t cap);

/* feature_file.c, of the native program: PATH, or with NULL the file in the user's cache folder. A
 * file that is not there is a new state. Saving makes the folder and writes the file atomically. */
int features_open(Features *f, const char *path, const char *stamp, const DibitLogger *logger,
                  DibitError *err);
int features_save(const Features *f, const char *path, DibitError *err);
#endif

/* plan_test.h - the tests of tests/plan.c that lie in other files. */
#ifndef PLAN_TEST_H
#define PLAN_TEST_H
#include "program.h"

#include "plan.h"

void peek_counts_what_opening_takes(void **state);
void peek_asks_for_what_is_missing(void **state);
void peek_refuses_what_open_refuses(void **state);
void peek_checks_the_size(void **state);
void peek_survives_damage(void **state);
void requests_are_checked(void **state);
#endif

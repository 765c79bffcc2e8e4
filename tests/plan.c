/* plan.c - the policy of docs/PLAN.md. */
#define _GNU_SOURCE
#include "plan_test.h"

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(peek_counts_what_opening_takes),
        cmocka_unit_test(peek_asks_for_what_is_missing),
        cmocka_unit_test(peek_refuses_what_open_refuses),
        cmocka_unit_test(peek_checks_the_size),
        cmocka_unit_test(peek_survives_damage),
        cmocka_unit_test(requests_are_checked),
    };
    return cmocka_run_group_tests(tests, open_work_folder, close_work_folder);
}

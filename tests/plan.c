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
        cmocka_unit_test(user_agents),
        cmocka_unit_test(ipads_are_known_by_touch),
        cmocka_unit_test(probes_win_over_the_label),
        cmocka_unit_test(memory_and_its_source),
        cmocka_unit_test(budget_is_a_share_of_it),
        cmocka_unit_test(bits_by_memory_gpu_and_mobile),
        cmocka_unit_test(four_bits_if_not_slower),
        cmocka_unit_test(trellis_types_where_they_are_fast),
        cmocka_unit_test(safari_has_at_least_3_bits),
        cmocka_unit_test(firefox_with_compute_shaders),
        cmocka_unit_test(chrome_and_edge_are_unchanged),
        cmocka_unit_test(phones_and_tablets),
        cmocka_unit_test(webassembly_has_at_least_3_bits),
        cmocka_unit_test(backend_and_module),
        cmocka_unit_test(threads_by_cores_and_battery),
        cmocka_unit_test(features_follow_the_probes),
        cmocka_unit_test(cache_types_in_the_order_of_their_loss),
        cmocka_unit_test(context_is_cut_only_where_it_was_not_asked_for),
        cmocka_unit_test(models_by_name_are_lowered_until_they_fit),
        cmocka_unit_test(a_calibration_in_the_file_is_told),
        cmocka_unit_test(repacking),
        cmocka_unit_test(variants_by_fit_and_loss),
        cmocka_unit_test(plans_as_text),
        cmocka_unit_test(device_texts_of_any_kind),
        cmocka_unit_test(lines_of_a_megabyte),
        cmocka_unit_test(device_texts_round_trip),
        cmocka_unit_test(numbers_are_read_exactly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

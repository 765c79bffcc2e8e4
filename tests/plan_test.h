/* plan_test.h - the tests of tests/plan.c that lie in other files. */
#ifndef PLAN_TEST_H
#define PLAN_TEST_H
#include "program.h"

#include "plan.h"

/* plan_peek.c */
void peek_counts_what_opening_takes(void **state);
void peek_asks_for_what_is_missing(void **state);
void peek_refuses_what_open_refuses(void **state);
void peek_checks_the_size(void **state);
void peek_survives_damage(void **state);
void requests_are_checked(void **state);
/* plan_agents.c */
void user_agents(void **state);
void ipads_are_known_by_touch(void **state);
void probes_win_over_the_label(void **state);
/* plan_rules.c */
void memory_and_its_source(void **state);
void budget_is_a_share_of_it(void **state);
void bits_by_memory_gpu_and_mobile(void **state);
void four_bits_if_not_slower(void **state);
void trellis_types_where_they_are_fast(void **state);
void safari_has_at_least_3_bits(void **state);
void firefox_with_compute_shaders(void **state);
void chrome_and_edge_are_unchanged(void **state);
void phones_and_tablets(void **state);
void webassembly_has_at_least_3_bits(void **state);
void backend_and_module(void **state);
void threads_by_cores_and_battery(void **state);
void features_follow_the_probes(void **state);
void cache_types_in_the_order_of_their_loss(void **state);
void context_is_cut_only_where_it_was_not_asked_for(void **state);
void models_by_name_are_lowered_until_they_fit(void **state);
void a_calibration_in_the_file_is_told(void **state);
void repacking(void **state);
void variants_by_fit_and_loss(void **state);
void plans_as_text(void **state);
/* plan_hostile.c */
void device_texts_of_any_kind(void **state);
void lines_of_a_megabyte(void **state);
void device_texts_round_trip(void **state);
void numbers_are_read_exactly(void **state);
#endif

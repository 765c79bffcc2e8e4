/* calibrate_command.c - `dibit calibrate weights` and what `dibit quantize` and `dibit info` say.
 */
#define _GNU_SOURCE
#include <jansson.h>

#include "program.h"

void calibrate_command(void **state);

void calibrate_command(void **state) {
    const Tiny spec = { .type = T_F16 };
    char text[700];
    open_work_folder(state);
    for (size_t i = 0; i < sizeof text - 1; i++) text[i] = (char)('a' + i * i % 23);
    text[sizeof text - 1] = 0;
    const char *model = write_tiny("m.gguf", &spec), *cal = work_path("m.cal");
    const char *file = write_file("text", text, strlen(text)), *out = work_path("q.gguf");
    expect(run(NULL, "calibrate", "weights", "-m", model, "-f", file, "-c", "64", "-o", cal), 0,
           "640 tokens, 9 inputs, 9 of them with all correlations");
    expect(run(NULL, "quantize", "-m", model, "-o", out, "--type", "s2", "--calibration", cal,
               "--recover", file, "--recover-tokens", "600", "--json"),
           0, NULL);
    assert_non_null(strstr(last.out, "\"loss\""));
    /* what the calibration predicts is near what is measured, and the file keeps the measure */
    expect(run(NULL, "quantize", "-m", model, "-o", out, "--type", "s3", "--calibration", cal,
               "--measure", file, "--embedding-type", "f16", "--json"),
           0, NULL);
    json_t *report = json_loads(last.out, 0, NULL);
    double predicted = json_number_value(json_object_get(report, "predicted_kld"));
    double measured =
        json_number_value(json_object_get(json_object_get(report, "measured"), "kld_mean"));
    json_decref(report);
    if (!(predicted > measured / 3 && predicted < 3 * measured))
        die("predicted KLD %g, measured %g", predicted, measured);
    expect(run(NULL, "info", "-m", out), 0, NULL);
    assert_non_null(strstr(last.out, "measured     KLD 0."));
    expect_error(run(NULL, "quantize", "-m", model, "-o", out, "--type", "s3", "--measure",
                     work_path("none")),
                 "none");
    expect(run(NULL, "quantize", "-m", model, "-o", out, "--type", "s2", "--calibration", cal,
               "--recover", file, "--recover-tokens", "600"),
           0, NULL);
    expect(run(NULL, "info", "-m", out), 0, NULL);
    assert_non_null(strstr(last.out, "quantized      s2, embedding q8, seed 0"));
    assert_non_null(strstr(last.out, "640 tokens of text"));
    assert_non_null(strstr(last.out, "600 tokens of text"));
    /* its own text, the same each time */
    const char *own = work_path("own.cal"), *again = work_path("again.cal");
    expect(run(NULL, "calibrate", "weights", "-m", model, "-c", "32", "--tokens", "96", "-o", own),
           0, "96 tokens are fewer than the 256 inputs");
    expect(run(NULL, "calibrate", "weights", "-m", model, "-c", "32", "--tokens", "96", "-o", again,
               "-t", "1"),
           0, NULL);
    char *a = read_text(own), *b = read_text(again);
    assert_memory_equal(a, b, 100000); /* both are larger */
    free(a);
    free(b);
    expect(run(NULL, "calibrate", "weights", "-m", model, "-f", file), 2, "-o FILE is missing");
    expect(run(NULL, "calibrate", "wights", "-m", model, "-o", cal), 2, "known are weights and kv");
    expect_error(
        run(NULL, "calibrate", "weights", "-m", model, "-f", file, "-o", cal, "--tokens", "100"),
        "fewer than one window of 512");
    expect_error(
        run(NULL, "quantize", "-m", model, "-o", out, "--type", "s2", "--calibration", model),
        "is no calibration file");
    close_work_folder(state);
}

#include "cli/json.h"

#include <math.h>

#include "cli/cli.h"

int cli_json_print(json_t *doc, size_t flags) {
    if (!doc) return cli_fail("out of memory for the JSON result");
    int failed = json_dumpf(doc, stdout, flags);
    json_decref(doc);
    if (failed) return cli_fail("cannot write JSON to stdout");
    putchar('\n');
    return EXIT_OK;
}

json_t *cli_json_real(double v) {
    return isfinite(v) ? json_real(v) : json_null();
}

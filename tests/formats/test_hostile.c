/* Damage of every kind of file: each truncation is a clean error that names the file; flipped bytes and failing allocations
 * never crash. Worth most under the asan preset. */
#include "support.h"

static uint64_t rng_next(uint64_t *s) { /* xorshift64 */
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

/* Touches all that a reader of the source would. */
static uint64_t use(const llmq_source *src) {
    uint64_t sum = 0;
    for (size_t i = 0; i < src->n_tensors; i++) {
        const llmq_tensor *t = &src->tensors[i];
        const uint8_t *p = t->data;
        for (int64_t j = 0; j < t->bytes; j++) sum += p[j];
        assert_ptr_equal(source_find(src, t->name), t);
        assert_true(tensor_numel(t) > 0);
    }
    for (size_t i = 0; i < meta_count(src->meta); i++) {
        const llmq_meta_value *v = meta_at(src->meta, i);
        if (v->type == META_STR) sum += strlen(v->str.s);
        if (v->type != META_ARRAY) continue;
        const llmq_str *strs = v->arr.data;
        for (size_t j = 0; j < v->arr.n; j++) sum += v->arr.type == META_STR ? strlen(strs[j].s) : ((const uint8_t *)v->arr.data)[j];
    }
    return sum;
}

/* A model: its files in tests/data, one of which gets damaged in a copy. */
typedef struct victim {
    const char *folder;   /* of the copies, under LLMQ_TEST_TMP */
    const char *files[5]; /* "": the end */
    const char *open;     /* what to open, relative to folder; "" is the folder */
    const char *damaged;
    size_t spare;         /* bytes at the end that may be missing */
} victim;

static const victim victims[] = {
    {"d1", {"kinds.gguf"}, "kinds.gguf", "kinds.gguf", 0},
    {"d2", {"parts-00001-of-00003.gguf", "parts-00002-of-00003.gguf", "parts-00003-of-00003.gguf"}, "parts-00001-of-00003.gguf",
     "parts-00001-of-00003.gguf", 0},
    {"d2", {"parts-00001-of-00003.gguf", "parts-00002-of-00003.gguf", "parts-00003-of-00003.gguf"}, "parts-00001-of-00003.gguf",
     "parts-00003-of-00003.gguf", 0},
    {"d3", {"single/config.json", "single/model.safetensors"}, "", "model.safetensors", 0},
    {"d3", {"single/config.json", "single/model.safetensors"}, "", "config.json", 1},
    {"d4", {"sharded/config.json", "sharded/model.safetensors.index.json", "sharded/model-00001-of-00002.safetensors",
            "sharded/model-00002-of-00002.safetensors"}, "", "model-00002-of-00002.safetensors", 0},
    {"d4", {"sharded/config.json", "sharded/model.safetensors.index.json", "sharded/model-00001-of-00002.safetensors",
            "sharded/model-00002-of-00002.safetensors"}, "", "model.safetensors.index.json", 1},
    {"d5", {"tiny-v0.bin"}, "tiny-v0.bin", "tiny-v0.bin", 0},
    {"d5", {"tiny-v1.bin"}, "tiny-v1.bin", "tiny-v1.bin", 0},
    {"d5", {"tiny-v2.bin"}, "tiny-v2.bin", "tiny-v2.bin", 0},
};
enum { N_VICTIMS = sizeof victims / sizeof *victims };

typedef struct scene {
    char open[512], damaged[512];
    char *data;
    size_t len;
} scene;

static scene setup(const victim *v) {
    scene s;
    char from[512], to[1024];
    snprintf(to, sizeof to, LLMQ_TEST_TMP "/%s", v->folder);
    mkdir(to, 0777);
    for (int i = 0; i < 5 && v->files[i]; i++) {
        snprintf(from, sizeof from, DATA "%s", v->files[i]);
        snprintf(to, sizeof to, LLMQ_TEST_TMP "/%s/%s", v->folder, path_base(v->files[i]));
        copy_file(from, to);
    }
    snprintf(s.open, sizeof s.open, LLMQ_TEST_TMP "/%s%s%s", v->folder, *v->open ? "/" : "", v->open);
    snprintf(s.damaged, sizeof s.damaged, LLMQ_TEST_TMP "/%s/%s", v->folder, v->damaged);
    assert_int_equal(file_read(s.damaged, 1 << 20, &s.data, &s.len, NULL), LLMQ_OK);
    return s;
}

static void test_truncations(void **state) {
    (void)state;
    for (int k = 0; k < N_VICTIMS; k++) {
        scene s = setup(&victims[k]);
        for (size_t len = s.len; len-- > 0;) {
            llmq_source *src = NULL;
            llmq_err err = {0};
            assert_int_equal(truncate(s.damaged, (off_t)len), 0);
            llmq_status status = source_open(s.open, &src, &err);
            if (len + victims[k].spare >= s.len) {
                assert_int_equal(status, LLMQ_OK);
                source_close(src);
                continue;
            }
            assert_null(src);
            if ((status != LLMQ_E_FORMAT && status != LLMQ_E_UNSUPPORTED) || !strstr(err.msg, victims[k].damaged) || err.status != status)
                fail_msg("%s cut at %zu of %zu: status %d, \"%s\"", victims[k].damaged, len, s.len, status, err.msg);
        }
        mem_free(s.data);
    }
}

static void test_extensions(void **state) {
    (void)state;
    for (int k = 0; k < N_VICTIMS; k++) { /* junk behind the end: GGUF allows it, the others know their size */
        scene s = setup(&victims[k]);
        llmq_source *src = NULL;
        FILE *f = fopen(s.damaged, "ab");
        fwrite("junk", 1, 4, f);
        fclose(f);
        llmq_status status = source_open(s.open, &src, NULL);
        assert_int_equal(status, strstr(victims[k].damaged, ".gguf") ? LLMQ_OK : LLMQ_E_FORMAT);
        source_close(src);
        mem_free(s.data);
    }
}

static void test_flips(void **state) {
    (void)state;
    uint64_t rng = 88172645463325252u, sum = 0;
    int opened = 0, refused = 0;
    for (int k = 0; k < N_VICTIMS; k++) {
        scene s = setup(&victims[k]);
        for (int i = 0; i < 800; i++) {
            char *copy = mem_alloc(s.len, 1);
            memcpy(copy, s.data, s.len);
            for (int flips = 1 + (int)(rng_next(&rng) % 3); flips > 0; flips--) {
                size_t at = rng_next(&rng) % s.len;
                if (rng_next(&rng) % 2 && s.len > 300) at %= 300; /* mostly where the headers are */
                uint64_t r = rng_next(&rng);
                copy[at] = r % 3 == 0 ? (char)(copy[at] ^ 1 << r / 3 % 8) : r % 3 == 1 ? (char)(r >> 8) : (char)0xff;
            }
            write_file(s.damaged, copy, s.len);
            mem_free(copy);
            llmq_source *src = NULL;
            llmq_err err = {0};
            llmq_status status = source_open(s.open, &src, &err);
            if (status == LLMQ_OK) {
                sum += use(src);
                opened++;
            } else {
                if (!*err.msg || err.status != status) fail_msg("flip %d of %s: status %d without a message", i, victims[k].damaged, status);
                refused++;
            }
            source_close(src);
        }
        mem_free(s.data);
    }
    assert_true(sum > 0);
    if (opened < 500 || refused < 500) fail_msg("%d opened, %d refused: the flips do not reach both sides", opened, refused);
}

static void test_failing_allocations(void **state) {
    (void)state;
    for (int k = 0; k < N_VICTIMS; k++) {
        scene s = setup(&victims[k]);
        llmq_status status = LLMQ_E_MEMORY;
        long n = 1;
        for (; n < 10000 && status != LLMQ_OK; n++) {
            llmq_source *src = NULL;
            llmq_err err = {0};
            mem_fail_after(n);
            status = source_open(s.open, &src, &err);
            mem_fail_after(0);
            source_close(src);
            if (status != LLMQ_OK && (status != LLMQ_E_MEMORY || !strstr(err.msg, "out of memory"))) fail_msg("allocation %ld: %d %s", n, status, err.msg);
        }
        assert_int_equal(status, LLMQ_OK);
        assert_true(n > 4);
        mem_free(s.data);
    }
    llmq_source *src = open_ok(DATA "kinds.gguf");
    llmq_status status = LLMQ_E_MEMORY;
    for (long n = 1; n < 1000 && status != LLMQ_OK; n++) {
        llmq_gguf_writer *w = NULL;
        mem_fail_after(n);
        status = gguf_writer_open(LLMQ_TEST_TMP "/memory.gguf", true, src->meta, src->tensors, src->n_tensors, &w, NULL);
        for (size_t i = 0; i < src->n_tensors && status == LLMQ_OK; i++)
            status = gguf_writer_put(w, i, src->tensors[i].data, (size_t)src->tensors[i].bytes, 0, NULL);
        if (status == LLMQ_OK) status = gguf_writer_finish(w, NULL, NULL);
        else gguf_writer_abort(w, false);
        mem_fail_after(0);
        if (status != LLMQ_OK) {
            assert_int_equal(status, LLMQ_E_MEMORY);
            assert_false(file_exists(LLMQ_TEST_TMP "/memory.gguf.tmp"));
        }
    }
    assert_int_equal(status, LLMQ_OK);
    source_close(src);
}

static void test_odd_paths(void **state) {
    (void)state;
    open_fails(LLMQ_TEST_TMP "/no-such-file", LLMQ_E_IO, "cannot open");
    open_fails("/dev/null", LLMQ_E_IO, "neither a file nor a folder");
    write_file(LLMQ_TEST_TMP "/empty.gguf", "", 0);
    open_fails(LLMQ_TEST_TMP "/empty.gguf", LLMQ_E_FORMAT, "no model that llmq reads");
    write_file(LLMQ_TEST_TMP "/notes.txt", "These are some notes, and not a model.", 38);
    open_fails(LLMQ_TEST_TMP "/notes.txt", LLMQ_E_FORMAT, "GGUF files, Hugging Face folders with safetensors, llama2.c .bin files");
    mkfifo(LLMQ_TEST_TMP "/pipe.gguf", 0600); /* must not wait for a writer */
    open_fails(LLMQ_TEST_TMP "/pipe.gguf", LLMQ_E_IO, "neither a file nor a folder");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_truncations), cmocka_unit_test(test_extensions), cmocka_unit_test(test_flips),
        cmocka_unit_test(test_failing_allocations), cmocka_unit_test(test_odd_paths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

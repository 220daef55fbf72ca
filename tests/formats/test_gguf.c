/* GGUF: files of gguf-py, our own writer, and headers that lie. */
#include "support.h"

#include "core/parallel.h"

/* ---- reading what gguf-py wrote ---- */

static const llmq_meta_value *value(const llmq_source *src, const char *key, llmq_meta_type type) {
    const llmq_meta_value *v = meta_find(src->meta, key);
    if (!v) fail_msg("%s is missing", key);
    assert_int_equal(v->type, type);
    return v;
}

static void assert_array(const llmq_source *src, const char *key, llmq_meta_type type, const void *data, size_t n) {
    const llmq_meta_value *v = value(src, key, META_ARRAY);
    assert_int_equal(v->arr.type, type);
    assert_int_equal(v->arr.n, n);
    assert_memory_equal(v->arr.data, data, n * meta_type_size(type));
}

static void assert_kinds(const llmq_source *src) {
    assert_int_equal(value(src, "test.u8", META_U8)->u, 250);
    assert_int_equal(value(src, "test.i8", META_I8)->i, -7);
    assert_int_equal(value(src, "test.u16", META_U16)->u, 65000);
    assert_int_equal(value(src, "test.i16", META_I16)->i, -30000);
    assert_int_equal(value(src, "test.u32", META_U32)->u, 4000000000u);
    assert_int_equal(value(src, "test.i32", META_I32)->i, -2000000000);
    assert_true(value(src, "test.f32", META_F32)->f == 0.15625);
    assert_int_equal(value(src, "test.yes", META_BOOL)->u, 1);
    assert_int_equal(value(src, "test.no", META_BOOL)->u, 0);
    assert_string_equal(value(src, "test.str", META_STR)->str.s, "sm\xc3\xb8rrebr\xc3\xb8" "d");
    assert_int_equal(value(src, "test.empty", META_STR)->str.len, 0);
    assert_true(value(src, "test.u64", META_U64)->u == (UINT64_C(1) << 63) + 5);
    assert_true(value(src, "test.i64", META_I64)->i == -(INT64_C(1) << 62));
    assert_true(value(src, "test.f64", META_F64)->f == 1.0 / 3);
    assert_array(src, "test.a_u8", META_U8, (const uint8_t[]){1, 2, 255}, 3);
    assert_array(src, "test.a_i8", META_I8, (const int8_t[]){-1, -128}, 2);
    assert_array(src, "test.a_u16", META_U16, (const uint16_t[]){65535}, 1);
    assert_array(src, "test.a_i16", META_I16, (const int16_t[]){-2, 3}, 2);
    assert_array(src, "test.a_u32", META_U32, (const uint32_t[]){4294967295u, 1}, 2);
    assert_array(src, "test.a_i32", META_I32, (const int32_t[]){-5, 6, 7}, 3);
    assert_array(src, "test.a_f32", META_F32, (const float[]){0.5f, -0.25f}, 2);
    assert_array(src, "test.a_bool", META_BOOL, (const uint8_t[]){1, 0, 1}, 3);
    assert_array(src, "test.a_u64", META_U64, (const uint64_t[]){UINT64_MAX}, 1);
    assert_array(src, "test.a_i64", META_I64, (const int64_t[]){INT64_MIN}, 1);
    assert_array(src, "test.a_f64", META_F64, (const double[]){1e300}, 1);
    const llmq_meta_value *strs = value(src, "test.a_str", META_ARRAY);
    const llmq_str *s = strs->arr.data;
    assert_int_equal(strs->arr.type, META_STR);
    assert_int_equal(strs->arr.n, 3);
    assert_string_equal(s[0].s, "one");
    assert_int_equal(s[1].len, 0);
    assert_string_equal(s[2].s, "zwei");

    static const struct { const char *name; llmq_type type; int n_dims; int64_t dims[4]; float tolerance; } tensors[] = {
        {"f32", LLMQ_TYPE_F32, 2, {5, 3, 1, 1}, 0}, {"f16", LLMQ_TYPE_F16, 3, {4, 3, 2, 1}, 0}, {"bf16", LLMQ_TYPE_BF16, 2, {7, 2, 1, 1}, 0},
        {"q8_0", LLMQ_TYPE_Q8_0, 2, {64, 2, 1, 1}, 0.009f}, {"q4_0", LLMQ_TYPE_Q4_0, 0, {32, 1, 1, 1}, 0.26f},
        {"vector", LLMQ_TYPE_F32, 1, {24, 1, 1, 1}, 0},
    };
    assert_int_equal(src->n_tensors, 6);
    for (int k = 0; k < 6; k++) {
        const llmq_tensor *t = source_find(src, tensors[k].name);
        assert_ptr_equal(t, &src->tensors[k]);
        assert_int_equal(t->type, tensors[k].type);
        if (tensors[k].n_dims) assert_int_equal(t->n_dims, tensors[k].n_dims);
        assert_memory_equal(t->dims, tensors[k].dims, sizeof t->dims);
        assert_pattern(t, k, tensors[k].tolerance);
    }
    assert_null(source_find(src, "f3"));
    assert_null(source_find(src, ""));
}

static void test_reads_gguf_py(void **state) {
    (void)state;
    llmq_source *src = open_ok(DATA "kinds.gguf");
    assert_string_equal(src->format->name, "gguf");
    assert_int_equal(src->naming, NAMING_GGUF);
    assert_string_equal(meta_get_str(src->meta, "general.architecture"), "llama");
    assert_kinds(src);
    source_release(src, &src->tensors[0]);
    assert_pattern(&src->tensors[0], 0, 0);
    source_close(src);
    source_close(NULL);
}

/* Sets the low byte of a key's integer. */
static void patch_key(const char *path, const char *key, uint8_t x) {
    char *data;
    size_t len, at = 0, n = strlen(key);
    assert_int_equal(file_read(path, 1 << 20, &data, &len, NULL), LLMQ_OK);
    while (at + n + 5 < len && memcmp(data + at, key, n)) at++;
    assert_true(at + n + 5 < len);
    data[at + n + 4] = (char)x; /* behind the name and the type */
    write_file(path, data, len);
    mem_free(data);
}

static void test_split(void **state) {
    (void)state;
    char path[512], part[512], side[4096];
    for (int no = 1; no <= 3; no++) {
        snprintf(path, sizeof path, DATA "parts-%05d-of-00003.gguf", no);
        llmq_source *src = open_ok(path);
        assert_int_equal(src->n_tensors, 5);
        assert_int_equal(src->n_maps, 3);
        for (int k = 0; k < 5; k++) assert_pattern(&src->tensors[k], k, 0);
        assert_string_equal(meta_get_str(src->meta, "general.name"), "parts");
        assert_null(meta_find(src->meta, "split.no"));
        assert_null(meta_find(src->meta, "split.count"));
        source_release(src, &src->tensors[4]);
        assert_true(source_side_file(src, "tiny-v0.bin", side, sizeof side));
        assert_true(file_exists(side));
        assert_false(source_side_file(src, "absent", side, sizeof side));
        assert_false(source_side_file(src, "single", side, sizeof side)); /* a folder */
        source_close(src);
    }
    for (int no = 1; no <= 3; no++) { /* copies with a part missing, or under another's name */
        snprintf(path, sizeof path, DATA "parts-%05d-of-00003.gguf", no);
        snprintf(part, sizeof part, LLMQ_TEST_TMP "/lost-%05d-of-00003.gguf", no);
        unlink(part);
        if (no != 2) copy_file(path, part);
    }
    llmq_source *src;
    llmq_err err;
    assert_int_equal(source_open(LLMQ_TEST_TMP "/lost-00003-of-00003.gguf", &src, &err), LLMQ_E_IO);
    assert_non_null(strstr(err.msg, "lost-00002-of-00003.gguf: is missing"));
    copy_file(DATA "parts-00003-of-00003.gguf", LLMQ_TEST_TMP "/lost-00002-of-00003.gguf");
    assert_int_equal(source_open(LLMQ_TEST_TMP "/lost-00003-of-00003.gguf", &src, &err), LLMQ_E_FORMAT);
    assert_non_null(strstr(err.msg, "lost-00002-of-00003.gguf: is named part 2 of 3"));
    copy_file(DATA "parts-00002-of-00003.gguf", LLMQ_TEST_TMP "/renamed.gguf");
    open_fails(LLMQ_TEST_TMP "/renamed.gguf", LLMQ_E_FORMAT, "is one of 3 parts");
    for (int no = 1; no <= 3; no++) { /* counts that lie: tensors in the first part, parts in the second */
        snprintf(path, sizeof path, DATA "parts-%05d-of-00003.gguf", no);
        snprintf(part, sizeof part, LLMQ_TEST_TMP "/lost-%05d-of-00003.gguf", no);
        copy_file(path, part);
    }
    patch_key(LLMQ_TEST_TMP "/lost-00001-of-00003.gguf", "split.tensors.count", 6);
    open_fails(LLMQ_TEST_TMP "/lost-00001-of-00003.gguf", LLMQ_E_FORMAT, "split.tensors.count says 6 tensors, the 3 parts have 5");
    patch_key(LLMQ_TEST_TMP "/lost-00002-of-00003.gguf", "split.count", 4);
    assert_int_equal(source_open(LLMQ_TEST_TMP "/lost-00003-of-00003.gguf", &src, &err), LLMQ_E_FORMAT);
    assert_non_null(strstr(err.msg, "lost-00002-of-00003.gguf: is named part 2 of 3, but split.no and split.count say part 2 of 4"));
    copy_file(DATA "kinds.gguf", LLMQ_TEST_TMP "/zero-00001-of-00000.gguf");
    open_fails(LLMQ_TEST_TMP "/zero-00001-of-00000.gguf", LLMQ_E_FORMAT, "0 files");
}

/* ---- writing ---- */

typedef struct put_job {
    llmq_gguf_writer *w;
    const llmq_source *src;
    llmq_status status[8];
} put_job;

/* Every worker writes the bytes of every tensor that are congruent to its id: far more runs than any real job makes. */
static void put_pieces(const llmq_worker *worker, void *arg) {
    put_job *job = arg;
    for (size_t i = job->src->n_tensors; i-- > 0;) {
        const llmq_tensor *t = &job->src->tensors[i];
        for (int64_t at = t->bytes - 1; at >= 0; at--)
            if (at % worker->n == worker->id && job->status[worker->id] == LLMQ_OK)
                job->status[worker->id] = gguf_writer_put(job->w, i, (const char *)t->data + at, 1, (size_t)at, NULL);
    }
}

static void test_round_trip(void **state) {
    (void)state;
    const char *path = LLMQ_TEST_TMP "/round.gguf";
    llmq_source *src = open_ok(DATA "kinds.gguf");
    llmq_err err = {0};
    put_job job = {.src = src};
    llmq_team *team;
    int64_t planned = 0, bytes = 0;
    assert_int_equal(meta_set_str(src->meta, "hf.private", "x", NULL), LLMQ_OK);
    assert_int_equal(gguf_plan_bytes(src->meta, src->tensors, src->n_tensors, &planned, &err), LLMQ_OK);
    assert_int_equal(gguf_writer_open(path, true, src->meta, src->tensors, src->n_tensors, &job.w, &err), LLMQ_OK);
    assert_int_equal(team_create(3, &team, &err), LLMQ_OK);
    team_run(team, put_pieces, &job);
    for (int i = 0; i < 3; i++) assert_int_equal(job.status[i], LLMQ_OK);
    assert_int_equal(gguf_writer_finish(job.w, &bytes, &err), LLMQ_OK);
    team_destroy(team);
    assert_int_equal(bytes, planned);

    llmq_source *back = open_ok(path);
    assert_int_equal(back->file_bytes, planned);
    assert_int_equal(planned % 32, 0);
    assert_string_equal(meta_at(back->meta, 0)->key, "general.architecture");
    assert_null(meta_find(back->meta, "hf.private"));
    assert_kinds(back);
    int64_t x;
    assert_true(meta_get_i64(back->meta, "general.file_type", &x) && x == 7); /* q8_0 holds most quantized weights */
    assert_true(meta_get_i64(back->meta, "general.quantization_version", &x) && x == 2);
    for (size_t i = 0; i < back->n_tensors; i++) assert_memory_equal(back->tensors[i].data, src->tensors[i].data, (size_t)src->tensors[i].bytes);
    source_close(back);

    /* Not again without force. */
    assert_int_equal(gguf_writer_open(path, false, src->meta, src->tensors, src->n_tensors, &job.w, &err), LLMQ_E_EXISTS);
    assert_null(job.w);
    source_close(src);
}

static void test_long_string_arrays(void **state) {
    (void)state;
    enum { N = 300000 };
    const char *path = LLMQ_TEST_TMP "/strings.gguf";
    llmq_meta *meta = meta_create();
    llmq_str *strs = mem_alloc(N, sizeof *strs);
    char *text = mem_alloc(N, 8);
    llmq_gguf_writer *w;
    for (int i = 0; i < N; i++) strs[i] = (llmq_str){text + 8 * i, (size_t)snprintf(text + 8 * i, 8, "%d", i)};
    assert_int_equal(meta_set_strs(meta, "tokenizer.ggml.merges", strs, N, NULL), LLMQ_OK);
    assert_int_equal(meta_set_str(meta, "general.architecture", "qwen3", NULL), LLMQ_OK); /* not the first here */
    assert_int_equal(gguf_writer_open(path, true, meta, NULL, 0, &w, NULL), LLMQ_OK);
    assert_int_equal(gguf_writer_finish(w, NULL, NULL), LLMQ_OK);
    llmq_source *src = open_ok(path);
    assert_string_equal(meta_at(src->meta, 0)->key, "general.architecture");
    const llmq_meta_value *v = value(src, "tokenizer.ggml.merges", META_ARRAY);
    assert_int_equal(v->arr.n, N);
    for (int i = 0; i < N; i += 997) assert_string_equal(((const llmq_str *)v->arr.data)[i].s, text + 8 * i);
    source_close(src);
    mem_free(text);
    mem_free(strs);
    meta_destroy(meta);
}

static llmq_tensor plan_tensor(const char *name, llmq_type type, int64_t cols, int64_t rows) {
    llmq_tensor t = {.type = type, .n_dims = 2, .dims = {cols, rows, 1, 1}};
    snprintf(t.name, sizeof t.name, "%s", name);
    return t;
}

static void test_coverage(void **state) {
    (void)state;
    const char *path = LLMQ_TEST_TMP "/coverage.gguf";
    const llmq_tensor t[2] = {plan_tensor("a", LLMQ_TYPE_F32, 8, 4), plan_tensor("b", LLMQ_TYPE_F16, 3, 1)};
    static const uint8_t data[128];
    llmq_meta *meta = meta_create();
    llmq_gguf_writer *w;
    llmq_err err = {0};
    meta_set_str(meta, "general.architecture", "llama", NULL);
    /* Which pieces of a's 128 bytes are put, and which byte is then missing (-1: none). */
    static const struct { size_t piece[4][2]; int missing; } cases[] = {
        {{{0, 128}}, -1}, {{{64, 128}, {0, 64}}, -1}, {{{0, 50}, {100, 128}, {20, 110}}, -1}, {{{0, 1}, {2, 3}, {1, 2}, {3, 128}}, -1},
        {{{1, 128}}, 0}, {{{0, 127}}, 127}, {{{0, 50}, {51, 128}}, 50}, {{{0, 0}}, 0}, {{{0, 10}, {20, 30}, {40, 128}, {30, 40}}, 10},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        unlink(path);
        assert_int_equal(gguf_writer_open(path, false, meta, t, 2, &w, &err), LLMQ_OK);
        assert_int_equal(gguf_writer_put(w, 1, data, 6, 0, &err), LLMQ_OK);
        for (int i = 0; i < 4; i++) {
            const size_t *p = cases[c].piece[i];
            assert_int_equal(gguf_writer_put(w, 0, data, p[1] - p[0], p[0], &err), LLMQ_OK);
        }
        llmq_status status = gguf_writer_finish(w, NULL, &err);
        assert_int_equal(status, cases[c].missing < 0 ? LLMQ_OK : LLMQ_E_ARG);
        assert_int_equal(file_exists(path), cases[c].missing < 0);
        assert_false(file_exists(LLMQ_TEST_TMP "/coverage.gguf.tmp"));
        if (cases[c].missing < 0) { /* padded to the end, though b has only 6 bytes */
            llmq_source *src = open_ok(path);
            assert_int_equal(src->file_bytes % 32, 0);
            assert_int_equal((const uint8_t *)src->tensors[1].data + 32 - src->maps[0].data, src->file_bytes);
            source_close(src);
            continue;
        }
        char part[64];
        snprintf(part, sizeof part, "tensor a was written: byte %d of 128", cases[c].missing);
        assert_non_null(strstr(err.msg, part));
    }
    unlink(path);
    assert_int_equal(gguf_writer_open(path, false, meta, t, 2, &w, &err), LLMQ_OK);
    assert_int_equal(gguf_writer_put(w, 2, data, 1, 0, &err), LLMQ_E_ARG);
    assert_int_equal(gguf_writer_put(w, 0, data, 2, 127, &err), LLMQ_E_ARG);
    assert_int_equal(gguf_writer_put(w, 0, data, SIZE_MAX, 2, &err), LLMQ_E_ARG);
    gguf_writer_abort(w, false);
    gguf_writer_abort(NULL, false);
    assert_false(file_exists(path));
    assert_false(file_exists(LLMQ_TEST_TMP "/coverage.gguf.tmp"));
    meta_destroy(meta);
}

/* A writer that is stopped half-way and another that goes on make the file that one alone makes. */
static void test_writer_goes_on(void **state) {
    (void)state;
    const char *path = LLMQ_TEST_TMP "/goes-on.gguf", *whole = LLMQ_TEST_TMP "/at-once.gguf";
    llmq_tensor t[2] = {plan_tensor("a", LLMQ_TYPE_F32, 8, 4), plan_tensor("b", LLMQ_TYPE_F16, 3, 1)};
    uint8_t data[128];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 5 + 1);
    llmq_meta *meta = meta_create();
    llmq_gguf_writer *w;
    llmq_err err = {0};
    meta_set_str(meta, "general.architecture", "llama", NULL);
    assert_int_equal(gguf_writer_open(whole, true, meta, t, 2, &w, &err), LLMQ_OK);
    assert_int_equal(gguf_writer_put(w, 0, data, 128, 0, &err), LLMQ_OK);
    assert_int_equal(gguf_writer_put(w, 1, data, 6, 0, &err), LLMQ_OK);
    assert_int_equal(gguf_writer_finish(w, NULL, &err), LLMQ_OK);
    unlink(path);
    assert_int_equal(gguf_writer_reopen(path, false, meta, t, 2, &w, &err), LLMQ_E_IO); /* there is none yet */
    assert_int_equal(gguf_writer_open(path, false, meta, t, 2, &w, &err), LLMQ_OK);
    assert_int_equal(gguf_writer_put(w, 0, data, 128, 0, &err), LLMQ_OK);
    assert_int_equal(gguf_writer_sync(w, &err), LLMQ_OK);
    gguf_writer_abort(w, true);
    assert_false(file_exists(path));
    t[1].dims[0] = 4; /* another directory: refused, and nothing is lost */
    assert_int_equal(gguf_writer_reopen(path, false, meta, t, 2, &w, &err), LLMQ_E_FORMAT);
    assert_non_null(strstr(err.msg, "goes-on.gguf.tmp"));
    t[1].dims[0] = 3;
    assert_int_equal(gguf_writer_reopen(path, false, meta, t, 2, &w, &err), LLMQ_OK);
    assert_int_equal(gguf_writer_put(w, 1, data, 6, 0, &err), LLMQ_OK);
    assert_int_equal(gguf_writer_finish(w, NULL, &err), LLMQ_E_ARG); /* nobody said that a is there */
    assert_int_equal(gguf_writer_open(path, false, meta, t, 2, &w, &err), LLMQ_OK);
    assert_int_equal(gguf_writer_put(w, 0, data, 128, 0, &err), LLMQ_OK);
    gguf_writer_abort(w, true);
    assert_int_equal(gguf_writer_reopen(path, false, meta, t, 2, &w, &err), LLMQ_OK);
    assert_int_equal(gguf_writer_have(w, 0, &err), LLMQ_OK);
    assert_int_equal(gguf_writer_put(w, 1, data, 6, 0, &err), LLMQ_OK);
    assert_int_equal(gguf_writer_finish(w, NULL, &err), LLMQ_OK);
    llmq_map x, y;
    assert_int_equal(file_map(path, &x, &err), LLMQ_OK);
    assert_int_equal(file_map(whole, &y, &err), LLMQ_OK);
    assert_int_equal(x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    file_unmap(&x);
    file_unmap(&y);
    meta_destroy(meta);
}

static void refuses(const llmq_meta *meta, const llmq_tensor *t, size_t n, llmq_status status, const char *part) {
    llmq_gguf_writer *w;
    llmq_err err = {0};
    const char *path = LLMQ_TEST_TMP "/refused.gguf";
    unlink(LLMQ_TEST_TMP "/refused.gguf.tmp"); /* of an earlier run that crashed */
    unlink(path);
    assert_int_equal(gguf_writer_open(path, false, meta, t, n, &w, &err), status);
    assert_null(w);
    if (!strstr(err.msg, part) || !strstr(err.msg, "refused.gguf")) fail_msg("%s", err.msg);
    assert_false(file_exists(path));
    assert_false(file_exists(LLMQ_TEST_TMP "/refused.gguf.tmp"));
}

static void test_writer_refusals(void **state) {
    (void)state;
    llmq_meta *meta = meta_create();
    llmq_tensor t[2] = {plan_tensor("a", LLMQ_TYPE_Q4_0, 32, 1), plan_tensor("a", LLMQ_TYPE_F32, 1, 1)};
    refuses(meta, t, 1, LLMQ_E_ARG, "general.architecture");
    meta_set_str(meta, "general.architecture", "llama", NULL);
    refuses(meta, t, 2, LLMQ_E_FORMAT, "tensor a occurs twice");
    memset(t[0].name, 'x', 64);
    t[0].name[64] = 0;
    refuses(meta, t, 1, LLMQ_E_ARG, "cannot be written");
    t[0] = plan_tensor("", LLMQ_TYPE_Q4_0, 32, 1);
    refuses(meta, t, 1, LLMQ_E_ARG, "cannot be written");
    t[0] = plan_tensor("odd", LLMQ_TYPE_Q4_0, 33, 1);
    refuses(meta, t, 1, LLMQ_E_FORMAT, "do not divide into q4_0 blocks of 32");
    t[0] = plan_tensor("none", LLMQ_TYPE_F32, 1, 0);
    refuses(meta, t, 1, LLMQ_E_FORMAT, "must be at least 1");
    t[0] = plan_tensor("huge", LLMQ_TYPE_F32, INT64_C(1) << 40, INT64_C(1) << 40);
    refuses(meta, t, 1, LLMQ_E_FORMAT, "overflows");
    t[0] = plan_tensor("a", (llmq_type)60, 32, 1);
    refuses(meta, t, 1, LLMQ_E_UNSUPPORTED, "type 60");
    t[0] = plan_tensor("a", LLMQ_TYPE_NF4, 64, 1);
    refuses(meta, t, 1, LLMQ_E_UNSUPPORTED, "of type nf4, which GGUF does not have");
    meta_set_str(meta, "llama.rope.scaling.type", "llama3", NULL);
    meta_set_f32(meta, "llama.rope.scaling.factor", 8, NULL);
    t[0] = plan_tensor("a", LLMQ_TYPE_F32, 1, 1);
    refuses(meta, t, 1, LLMQ_E_ARG, "rope_freqs.weight");
    /* With that tensor the keys of the scaling are left out. */
    llmq_gguf_writer *w;
    t[0] = plan_tensor("rope_freqs.weight", LLMQ_TYPE_F32, 2, 1);
    assert_int_equal(gguf_writer_open(LLMQ_TEST_TMP "/freqs.gguf", true, meta, t, 1, &w, NULL), LLMQ_OK);
    assert_int_equal(gguf_writer_put(w, 0, (const float[]){1, 8}, 8, 0, NULL), LLMQ_OK);
    assert_int_equal(gguf_writer_finish(w, NULL, NULL), LLMQ_OK);
    llmq_source *src = open_ok(LLMQ_TEST_TMP "/freqs.gguf");
    assert_null(meta_find(src->meta, "llama.rope.scaling.type"));
    assert_null(meta_find(src->meta, "llama.rope.scaling.factor"));
    assert_int_equal(src->tensors[0].n_dims, 1); /* trailing ones are dropped */
    source_close(src);
    meta_destroy(meta);
}

/* ---- headers that lie ---- */

typedef struct bytes {
    uint8_t data[8192];
    size_t n;
} bytes;

static void add(bytes *b, const void *data, size_t n) {
    assert_true(n <= sizeof b->data - b->n);
    memcpy(b->data + b->n, data, n);
    b->n += n;
}
static void u32(bytes *b, uint32_t x) { add(b, &x, sizeof x); }
static void u64(bytes *b, uint64_t x) { add(b, &x, sizeof x); }
static void text(bytes *b, const char *s) {
    u64(b, strlen(s));
    add(b, s, strlen(s));
}

/* One file: a lie about one of these fields at a time. */
typedef struct lie {
    const char *says;       /* expected part of the message; NULL: the file is fine */
    llmq_status status;
    uint32_t magic, version;
    uint64_t n_tensors, n_kv;
    const char *key2;       /* besides general.architecture */
    uint32_t alignment, alignment_type;
    const char *name2;      /* besides "first" */
    uint64_t name2_len;
    uint32_t n_dims, type;
    int64_t dim0, dim1;
    uint64_t offset;        /* of the second tensor; "first" has 64 bytes at 0 */
    size_t data_bytes;
} lie;

static const lie honest = {NULL, LLMQ_OK, 0x46554747, 3, 2, 2, "general.alignment", 32, META_U32, "second", 6, 2, LLMQ_TYPE_F32, 4, 4, 64, 128};

static void build(const lie *l, bytes *b) {
    b->n = 0;
    u32(b, l->magic);
    u32(b, l->version);
    u64(b, l->n_tensors);
    u64(b, l->n_kv);
    text(b, "general.architecture");
    u32(b, META_STR);
    text(b, "llama");
    text(b, l->key2);
    u32(b, l->alignment_type);
    u32(b, l->alignment);
    text(b, "first");
    u32(b, 1);
    u64(b, 16);
    u32(b, LLMQ_TYPE_F32);
    u64(b, 0);
    u64(b, l->name2_len);
    add(b, l->name2, strlen(l->name2));
    u32(b, l->n_dims);
    if (l->n_dims > 0) add(b, &l->dim0, 8);
    if (l->n_dims > 1) add(b, &l->dim1, 8);
    u32(b, l->type);
    u64(b, l->offset);
    b->n = size_align(b->n, l->alignment == 64 ? 64 : 32);
    b->n += l->data_bytes;
    assert_true(b->n <= sizeof b->data);
}

#define LIE(field_, value_, status_, says_)                                                                                     \
    do {                                                                                                               \
        lie l_ = honest;                                                                                               \
        l_.field_ = value_;                                                                                             \
        l_.status = status_;                                                                                           \
        l_.says = says_;                                                                                               \
        check_lie(&l_);                                                                                                \
    } while (0)

static void check_lie(const lie *l) {
    static bytes b;
    memset(&b, 0, sizeof b);
    build(l, &b);
    const char *path = LLMQ_TEST_TMP "/lie.gguf";
    write_file(path, b.data, b.n);
    if (l->says) open_fails(path, l->status, l->says);
    else source_close(open_ok(path));
}

static void test_header_lies(void **state) {
    (void)state;
    check_lie(&honest);
    LIE(version, 2, LLMQ_OK, NULL);
    LIE(magic, 0x46554746, LLMQ_E_FORMAT, "no model that llmq reads");
    LIE(version, 1, LLMQ_E_UNSUPPORTED, "version 1");
    LIE(version, 4, LLMQ_E_UNSUPPORTED, "version 4");
    LIE(version, 0x03000000, LLMQ_E_UNSUPPORTED, "big-endian");
    LIE(n_tensors, 3, LLMQ_E_FORMAT, "");
    LIE(n_tensors, UINT64_MAX, LLMQ_E_FORMAT, "tensors, more than the file has bytes for");
    LIE(n_tensors, 1 << 20, LLMQ_E_FORMAT, "tensors, more than the file has bytes for");
    LIE(n_tensors, 300, LLMQ_E_FORMAT, "the file ends inside the list of tensors");
    LIE(n_kv, UINT64_MAX, LLMQ_E_FORMAT, "keys; at most");
    LIE(n_kv, 3, LLMQ_E_FORMAT, "");
    LIE(key2, "general.architecture", LLMQ_E_FORMAT, "key general.architecture occurs twice");
    LIE(key2, "", LLMQ_E_FORMAT, "a key's name is empty");
    LIE(key2, "bell\a", LLMQ_E_FORMAT, "control characters");
    LIE(alignment, 0, LLMQ_E_FORMAT, "power of two");
    LIE(alignment, 24, LLMQ_E_FORMAT, "power of two");
    LIE(alignment, 0x80000000u, LLMQ_E_FORMAT, "power of two");
    LIE(alignment_type, META_F32, LLMQ_E_FORMAT, "power of two");
    LIE(alignment_type, 13, LLMQ_E_FORMAT, "unknown type 13");
    LIE(alignment_type, META_STR, LLMQ_E_FORMAT, "the file ends inside general.alignment");
    LIE(alignment_type, META_ARRAY, LLMQ_E_UNSUPPORTED, "elements of type 32");
    LIE(name2, "first", LLMQ_E_FORMAT, "");
    LIE(name2_len, UINT64_MAX, LLMQ_E_FORMAT, "the file ends inside the list of tensors");
    LIE(name2_len, 150, LLMQ_E_UNSUPPORTED, "tensor name of 150 bytes");
    LIE(name2_len, 0, LLMQ_E_FORMAT, "without a name");
    LIE(name2, "bell\a.", LLMQ_E_FORMAT, "control characters");
    LIE(n_dims, 5, LLMQ_E_FORMAT, "5 dimensions");
    LIE(type, 4, LLMQ_E_UNSUPPORTED, "GGUF type 4");
    LIE(type, 16, LLMQ_E_UNSUPPORTED, "IQ2_XXS");
    LIE(type, LLMQ_TYPE_NF4, LLMQ_E_UNSUPPORTED, "GGUF type 62"); /* in memory only */
    LIE(type, 0xffffffffu, LLMQ_E_UNSUPPORTED, "GGUF type 4294967295");
    LIE(type, LLMQ_TYPE_Q4_0, LLMQ_E_FORMAT, "do not divide");
    LIE(dim0, 0, LLMQ_E_FORMAT, "must be at least 1");
    LIE(dim0, -4, LLMQ_E_FORMAT, "must be at least 1");
    LIE(dim1, INT64_MAX, LLMQ_E_FORMAT, "overflows");
    LIE(dim1, INT64_MAX / 8, LLMQ_E_FORMAT, "overflows");
    LIE(dim1, 5, LLMQ_E_FORMAT, "second lies beyond the end");
    LIE(offset, 32, LLMQ_E_FORMAT, "overlap");
    LIE(offset, 0, LLMQ_E_FORMAT, "overlap");
    LIE(offset, 65, LLMQ_E_FORMAT, "not a multiple of the alignment");
    LIE(offset, 96, LLMQ_E_FORMAT, "beyond the end");
    LIE(offset, UINT64_MAX - 31, LLMQ_E_FORMAT, "beyond the end");
    LIE(data_bytes, 127, LLMQ_E_FORMAT, "beyond the end");
    LIE(data_bytes, 160, LLMQ_OK, NULL);
    lie twin = honest;
    twin.name2 = "first", twin.name2_len = 5, twin.status = LLMQ_E_FORMAT, twin.says = "tensor first occurs twice";
    check_lie(&twin);
    lie wide = honest;
    wide.alignment = 64;
    check_lie(&wide);
    wide.offset = 96, wide.data_bytes = 160, wide.status = LLMQ_E_FORMAT, wide.says = "not a multiple of the alignment 64";
    check_lie(&wide);
}

/* An array key with a count and an element type of our choice. */
static void array_lie(uint32_t type, uint64_t n, llmq_status status, const char *says) {
    static bytes b;
    memset(&b, 0, sizeof b);
    u32(&b, 0x46554747);
    u32(&b, 3);
    u64(&b, 0);
    u64(&b, 1);
    text(&b, "list");
    u32(&b, META_ARRAY);
    u32(&b, type);
    u64(&b, n);
    u64(&b, 2);
    u64(&b, 0x0202);
    write_file(LLMQ_TEST_TMP "/array.gguf", b.data, b.n);
    if (says) open_fails(LLMQ_TEST_TMP "/array.gguf", status, says);
    else source_close(open_ok(LLMQ_TEST_TMP "/array.gguf"));
}

static void test_array_lies(void **state) {
    (void)state;
    array_lie(META_U8, 16, LLMQ_OK, NULL);
    array_lie(META_U8, 17, LLMQ_E_FORMAT, "list says 17 elements");
    array_lie(META_U64, UINT64_MAX / 8 + 2, LLMQ_E_FORMAT, "elements");
    array_lie(META_STR, UINT64_MAX, LLMQ_E_FORMAT, "elements");
    array_lie(META_STR, 1, LLMQ_OK, NULL);
    array_lie(META_STR, 2, LLMQ_E_FORMAT, "the file ends inside list");
    array_lie(META_ARRAY, 1, LLMQ_E_UNSUPPORTED, "arrays of arrays");
    array_lie(99, 0, LLMQ_E_UNSUPPORTED, "elements of type 99");
    array_lie(META_BOOL, 16, LLMQ_E_FORMAT, "truth value 2");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_gguf_py), cmocka_unit_test(test_split),           cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_long_string_arrays), cmocka_unit_test(test_coverage),   cmocka_unit_test(test_writer_goes_on), cmocka_unit_test(test_writer_refusals),
        cmocka_unit_test(test_header_lies),   cmocka_unit_test(test_array_lies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

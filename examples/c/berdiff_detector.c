#define _POSIX_C_SOURCE 200112L
#include "berdiff_detector.h"

#include <onnxruntime_c_api.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INPUTS = 6, OUTPUTS = 4, KEYS = 8, MOST_RUNS = 64 };

static const char *const OUTPUT_NAMES[OUTPUTS] = {"anomaly_map", "flip_map", "reconstruction",
                                                  "score"};
static const char *const KEY_NAMES[KEYS] = {
    "berdiff.format",   "berdiff.name",      "berdiff.bundle",    "berdiff.preprocessing",
    "berdiff.sampling", "berdiff.threshold", "berdiff.precision", "berdiff.use"};

struct berdiff_detector {
    const OrtApi *api;
    OrtEnv *environment;
    OrtSession *session;
    OrtMemoryInfo *memory;
    berdiff_size size;
    char *texts[KEYS];
    pthread_mutex_t lock; /* of the runs that can be ended */
    OrtRunOptions *running[MOST_RUNS];
};

static _Thread_local char last_error[1024];

const char *berdiff_last_error(void) { return last_error; }

int berdiff_version(void) { return 100; }

static int fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(last_error, sizeof last_error, format, values);
    va_end(values);
    return -1;
}

/* 0 if all is well; otherwise what ONNX Runtime says is kept. */
static int checked(const OrtApi *api, OrtStatus *status) {
    if (status == NULL) return 0;
    fail("%s", api->GetErrorMessage(status));
    api->ReleaseStatus(status);
    return -1;
}

static int read_size(berdiff_detector *detector) {
    const OrtApi *api = detector->api;
    OrtTypeInfo *type = NULL;
    const OrtTensorTypeAndShapeInfo *shape = NULL;
    int64_t sides[4] = {0};
    size_t rank = 0;
    int bad = checked(api, api->SessionGetInputTypeInfo(detector->session, 0, &type)) ||
              checked(api, api->CastTypeInfoToTensorInfo(type, &shape)) ||
              checked(api, api->GetDimensionsCount(shape, &rank));
    if (!bad && rank != 4) bad = fail("its first input has %zu dimensions, expected 4", rank);
    if (!bad) bad = checked(api, api->GetDimensions(shape, sides, 4));
    if (!bad) {
        detector->size.channels = (size_t)sides[1];
        detector->size.height = (size_t)sides[2];
        detector->size.width = (size_t)sides[3];
    }
    if (type != NULL) api->ReleaseTypeInfo(type);
    return bad;
}

static int read_texts(berdiff_detector *detector) {
    const OrtApi *api = detector->api;
    OrtModelMetadata *metadata = NULL;
    OrtAllocator *allocator = NULL;
    if (checked(api, api->SessionGetModelMetadata(detector->session, &metadata))) return -1;
    int bad = checked(api, api->GetAllocatorWithDefaultOptions(&allocator));
    for (int key = 0; key < KEYS && !bad; key++)
        bad = checked(api, api->ModelMetadataLookupCustomMetadataMap(
                               metadata, allocator, KEY_NAMES[key], &detector->texts[key]));
    api->ReleaseModelMetadata(metadata);
    if (bad) return -1;
    if (detector->texts[0] == NULL) return fail("it is no detector in one file");
    if (strcmp(detector->texts[0], "1") != 0)
        return fail("it has format %s, expected 1: take the program that came with it",
                    detector->texts[0]);
    return 0;
}

static int open_session(berdiff_detector *detector, const char *path, int threads) {
    const OrtApi *api = detector->api;
    OrtSessionOptions *options = NULL;
    /* Official builds report to their makers unless told otherwise, before anything is created. */
    setenv("ORT_DISABLE_TELEMETRY", "1", 1);
    if (checked(api, api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "berdiff", &detector->environment)))
        return -1;
    int bad = checked(api, api->DisableTelemetryEvents(detector->environment)) ||
              checked(api, api->CreateSessionOptions(&options)) ||
              checked(api, api->SetIntraOpNumThreads(options, threads)) ||
              checked(api, api->CreateSession(detector->environment, path, options,
                                              &detector->session)) ||
              checked(api, api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault,
                                                    &detector->memory));
    if (options != NULL) api->ReleaseSessionOptions(options);
    return bad;
}

berdiff_detector *berdiff_open(const char *path, int threads) {
    const OrtApi *api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (api == NULL) {
        fail("ONNX Runtime %s is older than the headers this was compiled with",
             OrtGetApiBase()->GetVersionString());
        return NULL;
    }
    if (path == NULL || threads < 0) {
        fail("expected a path, and threads of 0 or more");
        return NULL;
    }
    berdiff_detector *detector = calloc(1, sizeof *detector);
    if (detector == NULL) {
        fail("out of memory");
        return NULL;
    }
    detector->api = api;
    pthread_mutex_init(&detector->lock, NULL);
    if (open_session(detector, path, threads) || read_texts(detector) || read_size(detector)) {
        berdiff_free(detector);
        return NULL;
    }
    return detector;
}

berdiff_size berdiff_input_size(const berdiff_detector *detector) { return detector->size; }

const char *berdiff_metadata(const berdiff_detector *detector, const char *key) {
    for (int number = 0; number < KEYS; number++)
        if (strcmp(KEY_NAMES[number], key) == 0) return detector->texts[number];
    return NULL;
}

berdiff_settings berdiff_defaults(void) {
    berdiff_settings settings = {0, -1, -1, -1.0f};
    return settings;
}

/* Let a run be ended by berdiff_cancel; the place it has, or -1 if there is none left. */
static int enter(berdiff_detector *detector, OrtRunOptions *options) {
    int place = -1;
    pthread_mutex_lock(&detector->lock);
    for (int number = 0; number < MOST_RUNS && place < 0; number++)
        if (detector->running[number] == NULL) {
            detector->running[number] = options;
            place = number;
        }
    pthread_mutex_unlock(&detector->lock);
    return place;
}

static void leave(berdiff_detector *detector, int place) {
    pthread_mutex_lock(&detector->lock);
    detector->running[place] = NULL;
    pthread_mutex_unlock(&detector->lock);
}

void berdiff_cancel(berdiff_detector *detector) {
    pthread_mutex_lock(&detector->lock);
    for (int number = 0; number < MOST_RUNS; number++)
        if (detector->running[number] != NULL)
            detector->api->ReleaseStatus(
                detector->api->RunOptionsSetTerminate(detector->running[number]));
    pthread_mutex_unlock(&detector->lock);
}

/* The inputs of one run, and how many there are: what has a default may be left away. */
typedef struct {
    OrtValue *values[INPUTS];
    const char *names[INPUTS];
    size_t count;
} feeds;

static int feed(berdiff_detector *detector, feeds *to, const char *name, const void *data,
                size_t bytes, const int64_t *shape, size_t rank, ONNXTensorElementDataType type) {
    const OrtApi *api = detector->api;
    to->names[to->count] = name;
    /* ONNX Runtime only reads what it is given here. */
    return checked(api, api->CreateTensorWithDataAsOrtValue(detector->memory, (void *)data, bytes,
                                                            shape, rank, type,
                                                            &to->values[to->count++]));
}

static int fill(berdiff_detector *detector, feeds *to, const float *images, const uint64_t *ids,
                size_t count, const berdiff_settings *settings) {
    berdiff_size size = detector->size;
    size_t pixels = size.channels * size.height * size.width;
    int64_t shape[4] = {(int64_t)count, (int64_t)size.channels, (int64_t)size.height,
                        (int64_t)size.width};
    if (feed(detector, to, "image", images, count * pixels * sizeof *images, shape, 4,
             ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) ||
        feed(detector, to, "image_id", ids, count * sizeof *ids, shape, 1,
             ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64) ||
        feed(detector, to, "seed", &settings->seed, sizeof settings->seed, NULL, 0,
             ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64))
        return -1;
    if (settings->noise_level >= 0 &&
        feed(detector, to, "noise_level", &settings->noise_level, sizeof settings->noise_level,
             NULL, 0, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64))
        return -1;
    if (settings->steps >= 0 && feed(detector, to, "steps", &settings->steps,
                                     sizeof settings->steps, NULL, 0,
                                     ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64))
        return -1;
    if (settings->flip_threshold >= 0 &&
        feed(detector, to, "flip_threshold", &settings->flip_threshold,
             sizeof settings->flip_threshold, NULL, 0, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT))
        return -1;
    return 0;
}

static int copy(berdiff_detector *detector, OrtValue *const values[OUTPUTS], size_t count,
                berdiff_results results) {
    const OrtApi *api = detector->api;
    size_t plane = detector->size.height * detector->size.width;
    size_t bytes[OUTPUTS] = {count * plane * sizeof(float), count * plane * sizeof(float),
                             count * detector->size.channels * plane * sizeof(float),
                             count * sizeof(double)};
    void *targets[OUTPUTS] = {results.anomaly_map, results.flip_map, results.reconstruction,
                              results.score};
    void *sources[OUTPUTS];
    for (int number = 0; number < OUTPUTS; number++)
        if (checked(api, api->GetTensorMutableData(values[number], &sources[number]))) return -1;
    for (int number = 0; number < OUTPUTS; number++)
        if (targets[number] != NULL) memcpy(targets[number], sources[number], bytes[number]);
    return 0;
}

int berdiff_detect(berdiff_detector *detector, const float *images, const uint64_t *ids,
                   size_t count, const berdiff_settings *settings, berdiff_results results) {
    if (detector == NULL || images == NULL || ids == NULL || count == 0)
        return fail("expected a detector, images, ids, and a count of 1 or more");
    const OrtApi *api = detector->api;
    berdiff_settings usual = berdiff_defaults();
    OrtRunOptions *options = NULL;
    OrtValue *outputs[OUTPUTS] = {NULL};
    feeds inputs = {{NULL}, {NULL}, 0};
    if (checked(api, api->CreateRunOptions(&options))) return -1;
    int place = enter(detector, options);
    int bad = place < 0 ? fail("more than %d detections at once", MOST_RUNS)
                        : fill(detector, &inputs, images, ids, count, settings ? settings : &usual);
    if (!bad)
        bad = checked(api, api->Run(detector->session, options, inputs.names,
                                    (const OrtValue *const *)inputs.values, inputs.count,
                                    OUTPUT_NAMES, OUTPUTS, outputs)) ||
              copy(detector, outputs, count, results);
    if (place >= 0) leave(detector, place);
    for (int number = 0; number < OUTPUTS; number++)
        if (outputs[number] != NULL) api->ReleaseValue(outputs[number]);
    for (size_t number = 0; number < inputs.count; number++)
        if (inputs.values[number] != NULL) api->ReleaseValue(inputs.values[number]);
    api->ReleaseRunOptions(options);
    return bad;
}

int berdiff_warm_up(berdiff_detector *detector, size_t count) {
    berdiff_size size = detector->size;
    float *zeros = calloc(count ? count : 1, size.channels * size.height * size.width * sizeof *zeros);
    uint64_t *ids = calloc(count ? count : 1, sizeof *ids);
    berdiff_results none = {NULL, NULL, NULL, NULL};
    int bad = zeros && ids ? berdiff_detect(detector, zeros, ids, count, NULL, none)
                           : fail("out of memory");
    free(zeros);
    free(ids);
    return bad;
}

void berdiff_free(berdiff_detector *detector) {
    if (detector == NULL) return;
    const OrtApi *api = detector->api;
    OrtAllocator *allocator = NULL;
    if (!checked(api, api->GetAllocatorWithDefaultOptions(&allocator)))
        for (int key = 0; key < KEYS; key++)
            if (detector->texts[key] != NULL)
                api->ReleaseStatus(api->AllocatorFree(allocator, detector->texts[key]));
    if (detector->memory != NULL) api->ReleaseMemoryInfo(detector->memory);
    if (detector->session != NULL) api->ReleaseSession(detector->session);
    if (detector->environment != NULL) api->ReleaseEnv(detector->environment);
    pthread_mutex_destroy(&detector->lock);
    free(detector);
}

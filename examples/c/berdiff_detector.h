/* A berdiff detector in one file, for C and C++: images in, anomaly maps out.
 *
 * The file is detector.onnx, from `berdiff export ... --single-file`. It is run by ONNX Runtime,
 * through its C interface; nothing else is needed.
 *
 * One detector may be used by any number of threads at once. What an image gets depends on its
 * pixels, its id, the seed and the settings, and on nothing else.
 *
 * RESEARCH - not for clinical use.
 */
#ifndef BERDIFF_DETECTOR_H
#define BERDIFF_DETECTOR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct berdiff_detector berdiff_detector;

/* What the detector takes: images of float32, [channels][height][width], in [0, 1]. */
typedef struct {
    size_t channels, height, width;
} berdiff_size;

/* How the loop runs. berdiff_defaults() gives those of the file. */
typedef struct {
    uint64_t seed;        /* of the run: the same seed gives the same maps */
    int64_t noise_level;  /* step to noise to; negative: the file's */
    int64_t steps;        /* reverse steps, 0 for every one; negative: the file's */
    float flip_threshold; /* probability that releases a bit; negative: the file's */
} berdiff_settings;

/* Results. Where a pointer is NULL, that result is not copied. */
typedef struct {
    float *anomaly_map;    /* [count][height][width], at least 0 */
    float *flip_map;       /* [count][height][width], in [0, 1] */
    float *reconstruction; /* [count][channels][height][width], in [0, 1] */
    double *score;         /* [count] */
} berdiff_results;

/* Version of this interface: 100 * major + minor. */
int berdiff_version(void);

/* Open a detector. threads: CPU threads, 0 for one per core.
 * NULL if it cannot be opened; berdiff_last_error() says why. */
berdiff_detector *berdiff_open(const char *path, int threads);

/* What images have to be. */
berdiff_size berdiff_input_size(const berdiff_detector *detector);

/* A text of the file, such as "berdiff.preprocessing" (JSON), "berdiff.bundle" or
 * "berdiff.threshold". NULL if the file has none of that name. Belongs to the detector. */
const char *berdiff_metadata(const berdiff_detector *detector, const char *key);

berdiff_settings berdiff_defaults(void);

/* Run once, so that the first image is not the slow one. 0 on success. */
int berdiff_warm_up(berdiff_detector *detector, size_t count);

/* Find anomalies in `count` images. ids: one number for each image, which says what noise it draws.
 * 0 on success; otherwise no result is touched and berdiff_last_error() says why. */
int berdiff_detect(berdiff_detector *detector, const float *images, const uint64_t *ids,
                   size_t count, const berdiff_settings *settings, berdiff_results results);

/* End every detection that is running now, from another thread; they fail. Later ones run. */
void berdiff_cancel(berdiff_detector *detector);

/* Close a detector that no thread uses any more. NULL is fine. */
void berdiff_free(berdiff_detector *detector);

/* Why the last call of this thread failed. */
const char *berdiff_last_error(void);

#ifdef __cplusplus
}
#endif
#endif

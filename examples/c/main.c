/* Find anomalies in an image: the way from a PGM file to an anomaly map, in C.
 *
 *     detect DETECTOR.onnx IMAGE.pgm MAP.pgm [SEED]
 *
 * The image is a grey picture of 8 or 16 bits as large as the detector's input, black where there
 * is nothing; the map is written as 16 bits, 65535 for an anomaly of 1. Your program has its images
 * in memory already and needs the middle part only.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "berdiff_detector.h"

/* Grey values of a binary PGM file ("P5"), or NULL. */
static float *read_pgm(const char *path, berdiff_size size) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) return NULL;
    size_t width = 0, height = 0;
    unsigned limit = 0;
    size_t pixels = size.height * size.width;
    float *values = NULL;
    if (fscanf(file, "P5 %zu %zu %u", &width, &height, &limit) == 3 && fgetc(file) != EOF &&
        width == size.width && height == size.height && limit > 0 && limit < 65536) {
        size_t bytes = limit > 255 ? 2 : 1;
        unsigned char *raw = malloc(pixels * bytes);
        if (raw != NULL && fread(raw, bytes, pixels, file) == pixels) {
            values = malloc(pixels * sizeof *values);
            for (size_t i = 0; values != NULL && i < pixels; i++)
                values[i] = bytes == 2 ? (float)(raw[2 * i] << 8 | raw[2 * i + 1]) : (float)raw[i];
        }
        free(raw);
    }
    fclose(file);
    return values;
}

static int write_pgm(const char *path, const float *values, berdiff_size size) {
    FILE *file = fopen(path, "wb");
    if (file == NULL) return -1;
    fprintf(file, "P5\n%zu %zu\n65535\n", size.width, size.height);
    for (size_t i = 0; i < size.height * size.width; i++) {
        float value = roundf(65535.0f * values[i]);
        unsigned grey = value < 65535.0f ? (unsigned)value : 65535u;
        fputc((int)(grey >> 8), file);
        fputc((int)(grey & 255), file);
    }
    return fclose(file);
}

static int ascending(const void *one, const void *other) {
    float a = *(const float *)one, b = *(const float *)other;
    return (a > b) - (a < b);
}

/* Bring intensities to [0, 1] as the file says: "normalisation" in berdiff.preprocessing. */
static int normalise(const char *preprocessing, float *image, size_t count) {
    float low = image[0], high = image[0];
    for (size_t i = 1; i < count; i++) {
        low = fminf(low, image[i]);
        high = fmaxf(high, image[i]);
    }
    if (low == high) return -1; /* a constant image shows nothing */
    if (strstr(preprocessing, "\"normalisation\": \"minmax\"")) {
        for (size_t i = 0; i < count; i++) image[i] = (image[i] - low) / (high - low);
        return 0;
    }
    if (strstr(preprocessing, "\"normalisation\": \"foreground-median\"")) {
        float *positive = malloc(count * sizeof *positive);
        size_t found = 0;
        for (size_t i = 0; positive != NULL && i < count; i++)
            if (image[i] > 0) positive[found++] = image[i];
        if (found == 0) {
            free(positive);
            return -1;
        }
        qsort(positive, found, sizeof *positive, ascending);
        float median = (positive[(found - 1) / 2] + positive[found / 2]) / 2;
        free(positive);
        for (size_t i = 0; i < count; i++)
            image[i] = fminf(fmaxf(image[i] * (0.35f / median), 0.0f), 1.0f);
        return 0;
    }
    return high > 1 || low < 0 ? -1 : 0; /* "none": they are in [0, 1] already */
}

/* A number that belongs to the image, so that the same image draws the same noise: FNV-1a. */
static uint64_t identity(const float *image, size_t count) {
    uint64_t hash = 14695981039346656037u;
    const unsigned char *bytes = (const unsigned char *)image;
    for (size_t i = 0; i < count * sizeof *image; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
    return hash;
}

int main(int count, char **words) {
    if (count < 4) {
        fprintf(stderr, "usage: %s DETECTOR.onnx IMAGE.pgm MAP.pgm [SEED]\n", words[0]);
        return 2;
    }
    berdiff_detector *detector = berdiff_open(words[1], 0);
    if (detector == NULL) {
        fprintf(stderr, "cannot open %s: %s\n", words[1], berdiff_last_error());
        return 1;
    }
    berdiff_size size = berdiff_input_size(detector);
    size_t pixels = size.height * size.width;
    int bad = 1;
    double score = 0;
    float *map = malloc(pixels * sizeof *map);
    float *image = size.channels == 1 ? read_pgm(words[2], size) : NULL;
    if (image == NULL || map == NULL) {
        fprintf(stderr, "%s is no grey PGM image of %zu x %zu, which the detector takes\n", words[2],
                size.width, size.height);
    } else if (normalise(berdiff_metadata(detector, "berdiff.preprocessing"), image, pixels)) {
        fprintf(stderr, "%s cannot be normalised\n", words[2]);
    } else {
        berdiff_settings settings = berdiff_defaults();
        settings.seed = count > 4 ? strtoull(words[4], NULL, 10) : 0;
        uint64_t id = identity(image, pixels);
        berdiff_results results = {map, NULL, NULL, &score};
        bad = berdiff_warm_up(detector, 1) ||
              berdiff_detect(detector, image, &id, 1, &settings, results);
        if (bad) fprintf(stderr, "%s\n", berdiff_last_error());
    }
    if (!bad) {
        bad = write_pgm(words[3], map, size);
        printf("id %llu\nscore %.9g\n", (unsigned long long)identity(image, pixels), score);
    }
    free(image);
    free(map);
    berdiff_free(detector);
    return bad != 0;
}

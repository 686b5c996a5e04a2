// The masked Bernoulli loop on an NVIDIA GPU: everything between the networks, one kernel per step.
//
// runtime/sampler.py, philox.py and anomaly.py are the specification: given the same network
// outputs, these kernels return the same bits as the NumPy code, because they take the same
// float32 operations in the same order. So arithmetic goes through multiply, add, subtract and
// divide below, which no compiler contracts or approximates; no maths library is called.
//
// NVRTC compiles this file, without headers, into the PTX and cubins beside it
// (compile_kernels.py). A C++ compiler makes plain functions of it, of the same names and
// arguments, that run every element: the tests compare those with NumPy, and the shipped PTX too.
//
// All arrays are contiguous, [N, ...] with the image first. A code has E = K * h * w bits per
// image, in the order of [K, h, w].

#ifdef __CUDACC__

#define KERNEL extern "C" __global__ void __launch_bounds__(256)
#define INLINE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
// Any grid does: a thread takes every (number of threads)-th item.
#define FOR_EACH(item, count)                                                    \
    for (Index item = blockIdx.x * (Index)blockDim.x + threadIdx.x; item < (count); \
         item += gridDim.x * (Index)blockDim.x)

#else

#define KERNEL extern "C" void
#define INLINE static inline
#define UNROLL
#define FOR_EACH(item, count) for (Index item = 0; item < (count); ++item)

#endif

typedef unsigned char Byte;
typedef unsigned Word;
typedef unsigned long long Index;
typedef unsigned long long ImageId;

// What does not change during a run. kernels.py holds the same layout for NumPy.
struct Settings {
    Word seed_low, seed_high;
    Word forward_step;     // timestep the code is noised to
    Word sample_code;      // 1: draw the own code from its probabilities; 0: threshold at 0.5
    float keep, floor;     // forward noise: q(z = 1) = keep * own + floor
    float flip_threshold;  // a bit whose flip probability exceeds it is released
    float kept;            // number of reverse steps
};

// Coefficients of one reverse step, see `posterior`.
struct Step {
    Word timestep;  // what the denoiser is told, and under which the noise is drawn
    float alpha, alpha_rest, abar, abar_rest;
};

static_assert(sizeof(Word) == 4 && sizeof(Index) == 8 && sizeof(float) == 4, "as in NumPy");
static_assert(sizeof(Settings) == 32 && sizeof(Step) == 20, "no padding");

// The state of a bit in one byte.
enum : Word {
    OWN = 1,      // the image's own bit
    MASK = 2,     // some step so far wanted to flip it
    CURRENT = 4,  // the bit now
};

// ---- float32 arithmetic, each operation rounded once, to nearest --------------------------------

#ifdef __CUDACC__
INLINE float multiply(float a, float b) { return __fmul_rn(a, b); }
INLINE float add(float a, float b) { return __fadd_rn(a, b); }
INLINE float subtract(float a, float b) { return __fsub_rn(a, b); }
INLINE float divide(float a, float b) { return __fdiv_rn(a, b); }
INLINE float absolute(float a) { return fabsf(a); }
INLINE float not_a_number() { return __int_as_float(0x7FC00000); }
#else
INLINE float multiply(float a, float b) { return a * b; }
INLINE float add(float a, float b) { return a + b; }
INLINE float subtract(float a, float b) { return a - b; }
INLINE float divide(float a, float b) { return a / b; }
INLINE float absolute(float a) { return __builtin_fabsf(a); }
INLINE float not_a_number() { return __builtin_nanf(""); }
#endif

INLINE bool is_finite(float a) { return absolute(a) <= 3.402823466e+38f; }
// NaN stays NaN, as in NumPy.
INLINE float at_least_0(float a) { return a < 0.0f ? 0.0f : a; }
INLINE float clip(float a) { return a < 0.0f ? 0.0f : a > 1.0f ? 1.0f : a; }

// ---- blocks of four bits ------------------------------------------------------------------------

// Four neighbours in one image: what one thread takes, since one Philox counter gives four numbers.
// The last block of an image is shorter where E is no multiple of 4.
struct Block {
    Word image, index;  // index: of the block in its image
    Index first;        // of its first element in the arrays
    int count;
};

INLINE Index blocks(int E, int N) { return (Index)((Word)E + 3) / 4 * (Word)N; }

INLINE Block block_at(Index item, int E) {
    const Index per_image = ((Word)E + 3) / 4;
    const Word image = (Word)(item / per_image), index = (Word)(item % per_image);
    const int left = E - (int)(4 * index);
    return {image, index, (Index)image * (Word)E + 4 * (Index)index, left < 4 ? left : 4};
}

template <typename T>
struct Four {
    T lane[4];
};

#ifdef __CUDACC__
// A whole, aligned block is moved in one access, so that a warp's accesses leave no gaps. Stores
// say so by an intrinsic: NVRTC takes plain ones apart.
template <typename T>
INLINE bool in_one_access(const T* place, Block block) {
    return block.count == 4 && (Index)place % (4 * sizeof(T)) == 0;
}

INLINE Four<float> read_whole(const float* from) {
    const float4 four = *(const float4*)from;
    return {{four.x, four.y, four.z, four.w}};
}

INLINE Four<Byte> read_whole(const Byte* from) {
    const uchar4 four = *(const uchar4*)from;
    return {{four.x, four.y, four.z, four.w}};
}

INLINE void write_whole(float* to, Four<float> four) {
    __stcg((float4*)to, {four.lane[0], four.lane[1], four.lane[2], four.lane[3]});
}

INLINE void write_whole(Byte* to, Four<Byte> four) {
    __stcg((uchar4*)to, {four.lane[0], four.lane[1], four.lane[2], four.lane[3]});
}
#endif

template <typename T>
INLINE Four<T> read(const T* from, Block block) {
    from += block.first;
#ifdef __CUDACC__
    if (in_one_access(from, block)) return read_whole(from);
#endif
    Four<T> values = {};
    UNROLL
    for (int lane = 0; lane < 4; ++lane) {
        if (lane < block.count) values.lane[lane] = from[lane];
    }
    return values;
}

template <typename T>
INLINE void write(T* to, Block block, Four<T> values) {
    to += block.first;
#ifdef __CUDACC__
    if (in_one_access(to, block)) return write_whole(to, values);
#endif
    UNROLL
    for (int lane = 0; lane < 4; ++lane) {
        if (lane < block.count) to[lane] = values.lane[lane];
    }
}

// ---- random numbers -----------------------------------------------------------------------------

enum : Word { CODE_STEP = 0xFFFFFFFFu };  // the step number under which a sampled code is drawn

// Four uniforms in [0, 1), multiples of 2^-24: Philox4x32-10 (Salmon et al. 2011) of
// counter (block, step, id low, id high) and the seed as key.
INLINE Four<float> draw(const Settings& settings, ImageId id, Word step, Word block) {
    Word word0 = block, word1 = step, word2 = (Word)id, word3 = (Word)(id >> 32);
    Word key0 = settings.seed_low, key1 = settings.seed_high;
    UNROLL
    for (int round = 0; round < 10; ++round) {
        const Index product0 = (Index)0xD2511F53u * word0, product1 = (Index)0xCD9E8D57u * word2;
        word0 = (Word)(product1 >> 32) ^ word1 ^ key0;
        word2 = (Word)(product0 >> 32) ^ word3 ^ key1;
        word1 = (Word)product1;
        word3 = (Word)product0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    // 24 bits: exact in float32, and so is the product.
    const float unit = 1.0f / 16777216.0f;
    return {{multiply((float)(word0 >> 8), unit), multiply((float)(word1 >> 8), unit),
             multiply((float)(word2 >> 8), unit), multiply((float)(word3 >> 8), unit)}};
}

// ---- the loop -----------------------------------------------------------------------------------

// The image's own code, and its noised form the loop starts from; everything else set to its start.
// `unsound` is only ever raised here and below: the caller lowers it.
KERNEL begin(const Settings* settings_at, const ImageId* ids, const float* probability, float* code,
             Byte* state, float* flips, int* unsound, int* cursor, int E, int N) {
    const Settings settings = *settings_at;
    FOR_EACH(item, blocks(E, N)) {
        const Block block = block_at(item, E);
        const ImageId id = ids[block.image];
        Four<float> uniform = {{0.5f, 0.5f, 0.5f, 0.5f}};
        if (settings.sample_code) uniform = draw(settings, id, CODE_STEP, block.index);
        const Four<float> noise = draw(settings, id, settings.forward_step, block.index);
        const Four<float> p = read(probability, block);
        Four<float> bits;
        Four<Byte> states;
        bool sound = true;
        UNROLL
        for (int lane = 0; lane < 4; ++lane) {
            sound = sound && is_finite(p.lane[lane]);
            const bool own = uniform.lane[lane] < p.lane[lane];
            const float q = add(multiply(settings.keep, own ? 1.0f : 0.0f), settings.floor);
            const bool bit = noise.lane[lane] < q;
            bits.lane[lane] = bit ? 1.0f : 0.0f;
            states.lane[lane] = (Byte)(OWN * own | CURRENT * bit);
        }
        write(code, block, bits);
        write(state, block, states);
        write(flips, block, Four<float>{});
        if (!sound) unsound[block.image] = 1;
        if (item == 0) *cursor = -1;
    }
}

// On to the next step; launched as one thread. `t` is what the denoiser reads.
KERNEL advance(const Step* steps, int* cursor, long long* t) {
    FOR_EACH(item, 1) {
        const int next = *cursor + 1;
        *cursor = next;
        *t = steps[next].timestep;
    }
}

// Probability that the previous bit is 1, for a soft z0 (Wang et al. 2023, eq. 8).
INLINE float posterior(float z, float z0, const Step& step) {
    const float one = multiply(add(multiply(step.alpha, z), step.alpha_rest),
                               add(multiply(step.abar, z0), step.abar_rest));
    const float zero = multiply(add(multiply(step.alpha, subtract(1.0f, z)), step.alpha_rest),
                                add(multiply(step.abar, subtract(1.0f, z0)), step.abar_rest));
    return divide(one, add(one, zero));
}

// One reverse step from the denoiser's `eps`. Moves 18 bytes per bit: eps 4, flips 4 + 4,
// state 1 + 1, code 4. Without the float code that the networks read it would be 14.
KERNEL step(const Settings* settings_at, const Step* steps, const int* cursor, const ImageId* ids,
            const float* eps, float* code, Byte* state, float* flips, int E, int N) {
    const Settings settings = *settings_at;
    const Step now = steps[*cursor];
    FOR_EACH(item, blocks(E, N)) {
        const Block block = block_at(item, E);
        const Four<float> flip = read(eps, block);
        Four<Byte> states = read(state, block);
        Four<float> sums = read(flips, block);
        const Four<float> noise = draw(settings, ids[block.image], now.timestep, block.index);
        Four<float> bits;
        UNROLL
        for (int lane = 0; lane < 4; ++lane) {
            Word bit_state = states.lane[lane];
            const float own = bit_state & OWN ? 1.0f : 0.0f;
            const float z = bit_state & CURRENT ? 1.0f : 0.0f;
            const float healthy = absolute(subtract(z, flip.lane[lane]));
            sums.lane[lane] = add(sums.lane[lane], absolute(subtract(healthy, own)));
            // What nobody wants to flip stays as it was: anatomy is kept.
            if (flip.lane[lane] > settings.flip_threshold) bit_state |= MASK;
            const float z0 = bit_state & MASK ? healthy : own;
            const bool bit = noise.lane[lane] < posterior(z, z0, now);
            bits.lane[lane] = bit ? 1.0f : 0.0f;
            states.lane[lane] = (Byte)((bit_state & (OWN | MASK)) | CURRENT * bit);
        }
        write(code, block, bits);
        write(state, block, states);
        write(flips, block, sums);
    }
}

// The last step draws nothing: its code is soft and goes to the decoder.
KERNEL finish(const float* eps, float* code, const Byte* state, float* flips, int* unsound, int E,
              int N) {
    FOR_EACH(item, blocks(E, N)) {
        const Block block = block_at(item, E);
        const Four<float> flip = read(eps, block);
        const Four<Byte> states = read(state, block);
        Four<float> sums = read(flips, block);
        Four<float> healthy;
        bool sound = true;
        UNROLL
        for (int lane = 0; lane < 4; ++lane) {
            const float own = states.lane[lane] & OWN ? 1.0f : 0.0f;
            const float z = states.lane[lane] & CURRENT ? 1.0f : 0.0f;
            healthy.lane[lane] = absolute(subtract(z, flip.lane[lane]));
            sums.lane[lane] = add(sums.lane[lane], absolute(subtract(healthy.lane[lane], own)));
            // NaN and infinity of any step so far are still in the sum.
            sound = sound && is_finite(sums.lane[lane]);
        }
        write(code, block, healthy);
        write(flips, block, sums);
        if (!sound) unsound[block.image] = 1;
    }
}

// The image's own code, for the decoder.
KERNEL own_code(const Byte* state, float* code, int E, int N) {
    FOR_EACH(item, blocks(E, N)) {
        const Block block = block_at(item, E);
        const Four<Byte> states = read(state, block);
        Four<float> own;
        UNROLL
        for (int lane = 0; lane < 4; ++lane) own.lane[lane] = states.lane[lane] & OWN ? 1.0f : 0.0f;
        write(code, block, own);
    }
}

// ---- maps: one thread takes one pixel -----------------------------------------------------------

enum Kind : int { SQUARED = 0, ABSOLUTE = 1, SIGNED = 2, CHANGE = 3 };

INLINE float deviation(int kind, float image, float healthy, float unchanged) {
    switch (kind) {
        case SQUARED: {
            const float difference = subtract(healthy, image);
            return multiply(difference, difference);
        }
        case ABSOLUTE:
            return absolute(subtract(image, healthy));
        case SIGNED:
            return at_least_0(subtract(image, healthy));
        default:
            return at_least_0(subtract(unchanged, healthy));
    }
}

// The healthy counterpart, in [0, 1], and the anomaly map before the median: a sum over the C
// channels of P pixels, first to last. `unchanged`, decoded from the own code, is read for CHANGE.
KERNEL difference(int kind, const float* images, const float* decoded, const float* unchanged,
                  float* map, float* reconstruction, int* unsound, int C, int P, int N) {
    FOR_EACH(item, (Index)N * P) {
        const Index image = item / P, pixel = item % P;
        bool sound = true;
        float sum = 0.0f;
        for (int channel = 0; channel < C; ++channel) {
            const Index at = (image * C + channel) * P + pixel;
            const float original = kind == CHANGE ? unchanged[at] : 0.0f;
            sound = sound && is_finite(decoded[at]) && is_finite(original);
            const float healthy = clip(decoded[at]);
            reconstruction[at] = healthy;
            sum = add(sum, deviation(kind, images[at], healthy, clip(original)));
        }
        map[item] = sum;
        if (!sound) unsound[image] = 1;
    }
}

// Where an index beyond the edge lies: d c b a | a b c d | d c b a.
INLINE int reflect(int index, int size) {
    index %= 2 * size;
    if (index < 0) index += 2 * size;
    return index < size ? index : 2 * size - 1 - index;
}

INLINE void order(float& low, float& high) {
    const float a = low, b = high;
    low = b < a ? b : a;
    high = b < a ? a : b;
}

// Median of each 5 x 5 neighbourhood, exactly.
KERNEL median(const float* map, float* out, int H, int W, int N) {
    const int SIZE = 25, HALF = SIZE / 2;
    FOR_EACH(item, (Index)N * H * W) {
        const int column = (int)(item % W), row = (int)(item / W % H);
        const float* plane = map + item / W / H * H * W;
        int rows[5], columns[5];
        UNROLL
        for (int i = 0; i < 5; ++i) {
            rows[i] = reflect(row + i - 2, H);
            columns[i] = reflect(column + i - 2, W);
        }
        // Among HALF + 2 of the values neither the smallest nor the largest is the median. So
        // both are dropped and another value is taken in, until one is left.
        float kept[HALF + 2];
        UNROLL
        for (int i = 0; i < HALF + 2; ++i) kept[i] = plane[(Index)rows[i / 5] * W + columns[i % 5]];
        UNROLL
        for (int size = HALF + 2; size > 2; --size) {
            UNROLL
            for (int i = 0; i < size / 2; ++i) order(kept[i], kept[size - 1 - i]);
            UNROLL
            for (int i = 1; i < (size + 1) / 2; ++i) order(kept[0], kept[i]);
            UNROLL
            for (int i = size / 2; i < size - 1; ++i) order(kept[i], kept[size - 1]);
            const int taken = SIZE - size + 3;  // next value: 14 when 14 are held, 15 when 13 are
            if (taken < SIZE) kept[0] = plane[(Index)rows[taken / 5] * W + columns[taken % 5]];
        }
        out[item] = kept[1];
    }
}

// Mean over the steps, then over the K bits of a position, first to last; P = h * w positions.
KERNEL flip_mean(const Settings* settings, const float* flips, float* out, int K, int P, int N) {
    const float kept = settings->kept;
    FOR_EACH(item, (Index)N * P) {
        const float* bit = flips + item / P * K * P + item % P;
        float sum = 0.0f;
        for (int k = 0; k < K; ++k) sum = add(sum, divide(bit[(Index)k * P], kept));
        out[item] = divide(sum, (float)K);
    }
}

// NaN throughout for images of which some network answered with NaN or infinity.
KERNEL blank(const int* unsound, float* values, int M, int N) {
    FOR_EACH(item, (Index)N * M) {
        if (unsound[item / M]) values[item] = not_a_number();
    }
}

// Vectors, exponentials and the register tile used by all kernels.
//
// Written with the vector extensions of GCC and Clang, so that one source supports every instruction set; intrinsics
// are used only where the extensions have no equivalent (scaling by a power of two, bfloat16 products). Compiled with
// -march=native.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

namespace hc {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr bool kManyRegisters = true;  // 32 of them
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr bool kManyRegisters = false;  // 16
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr bool kManyRegisters = true;
#else
constexpr int kVectorBytes = 16;
constexpr bool kManyRegisters = false;
#endif

typedef float FloatVector __attribute__((vector_size(kVectorBytes)));
typedef double DoubleVector __attribute__((vector_size(kVectorBytes)));
typedef int32_t Int32Vector __attribute__((vector_size(kVectorBytes)));
typedef int64_t Int64Vector __attribute__((vector_size(kVectorBytes)));

// A register tile is kRows<V> rows of V vectors: as many accumulators as fit into the registers in addition to the operands.
constexpr int kTileVectors = kManyRegisters ? 4 : 2;
constexpr int rows_of(int vectors) {
    if (!kManyRegisters) return vectors == 2 ? 6 : 12;
    return vectors == 4 ? 6 : vectors == 3 ? 8 : 12;
}
constexpr long kRowSlack = 11;  // a loop over whole tiles reads at most this many rows beyond the last

inline long round_up(long value, long step) { return (value + step - 1) / step * step; }

inline FloatVector splat(FloatVector, float x) { return FloatVector{} + x; }
inline DoubleVector splat(DoubleVector, double x) { return DoubleVector{} + x; }

template <class V>
inline V max_of(V a, V b) {
    return a > b ? a : b;
}
#if defined(__AVX512F__)
template <>
inline FloatVector max_of(FloatVector a, FloatVector b) {
    return (FloatVector)_mm512_max_ps((__m512)a, (__m512)b);
}
template <>
inline DoubleVector max_of(DoubleVector a, DoubleVector b) {
    return (DoubleVector)_mm512_max_pd((__m512d)a, (__m512d)b);
}
#endif

// 2^x = 2^n * p(x - n), n the nearest integer. p is the polynomial with minimal relative error on [-1/2, 1/2] (Remez):
// degree 5: 7.5e-8 (float), degree 3: 7.5e-5 (weights that are then rounded to bfloat16), degree 11: 3e-18 (double).
// Arguments far below the range, such as those of masked keys, give exactly 0.
template <int Degree>
inline FloatVector polynomial(FloatVector f) {
    if constexpr (Degree == 3) {
        FloatVector p = f * 0.055171662339146942f + 0.242611122454642081f;
        p = p * f + 0.693260988505221219f;
        return p * f + 0.999928075521351412f;
    } else {
        FloatVector p = f * 0.00132764692106513798f + 0.00967554136356747277f;
        p = p * f + 0.0555071328447481136f;
        p = p * f + 0.240221197261869047f;
        p = p * f + 0.693146967057384913f;
        return p * f + 1.00000007165101754f;
    }
}

template <int Degree>
inline DoubleVector polynomial(DoubleVector f) {
    DoubleVector p = f * 4.43527840433824252e-10 + 7.0741055780738967e-9;
    p = p * f + 1.01781980516256904e-7;
    p = p * f + 1.32154330899539064e-6;
    p = p * f + 0.0000152527334899126854;
    p = p * f + 0.000154035304625136713;
    p = p * f + 0.00133335581467900063;
    p = p * f + 0.00961812910758833611;
    p = p * f + 0.0555041086648199212;
    p = p * f + 0.240226506959101562;
    p = p * f + 0.69314718055994533;
    return p * f + 0.999999999999999997;
}

#if defined(__AVX512F__)
template <int Degree>
inline FloatVector exp2_of(FloatVector x) {
    __m512 n = _mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    FloatVector p = polynomial<Degree>(x - (FloatVector)n);
    return (FloatVector)_mm512_scalef_ps((__m512)p, n);
}
template <int Degree>
inline DoubleVector exp2_of(DoubleVector x) {
    __m512d n = _mm512_roundscale_pd((__m512d)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    DoubleVector p = polynomial<Degree>(x - (DoubleVector)n);
    return (DoubleVector)_mm512_scalef_pd((__m512d)p, n);
}
#else
// Adding 1.5 * 2^23 (2^52) leaves the nearest integer in the low bits of the sum.
template <int Degree>
inline FloatVector exp2_of(FloatVector x) {
    const float magic = 12582912.0f;
    FloatVector inside = max_of(x, splat(x, -126.0f));
    FloatVector t = inside + magic;
    FloatVector p = polynomial<Degree>(inside - (t - magic));
    Int32Vector bits = (Int32Vector)p + ((Int32Vector)t << 23);
    return x < -126.0f ? FloatVector{} : (FloatVector)bits;
}
template <int Degree>
inline DoubleVector exp2_of(DoubleVector x) {
    const double magic = 6755399441055744.0;
    DoubleVector inside = max_of(x, splat(x, -1022.0));
    DoubleVector t = inside + magic;
    DoubleVector p = polynomial<Degree>(inside - (t - magic));
    Int64Vector bits = (Int64Vector)p + ((Int64Vector)t << 52);
    return x < -1022.0 ? DoubleVector{} : (DoubleVector)bits;
}
#endif

// An arithmetic: the type of factors (Element), the type of sums (Sum), one vector of multiply-adds.
struct Float {
    using Input = float;
    using Element = float;
    using Sum = float;
    using Vector = FloatVector;
    static constexpr int kLanes = kVectorBytes / 4;
    static constexpr int kPacked = 1;  // numbers in an Element
    static constexpr int kDegree = 5;
    static constexpr float kNever = 1e30f;  // a bias that exceeds any logit
    static Vector multiply_add(Vector sum, Element a, Vector b) { return sum + a * b; }
};

struct Double {
    using Input = double;
    using Element = double;
    using Sum = double;
    using Vector = DoubleVector;
    static constexpr int kLanes = kVectorBytes / 8;
    static constexpr int kPacked = 1;
    static constexpr int kDegree = 11;
    static constexpr double kNever = 1e300;
    static Vector multiply_add(Vector sum, Element a, Vector b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
#define HC_BFLOAT16 1
typedef int16_t Int16Vector __attribute__((vector_size(64)));
// Elements are pairs of bfloat16 along the summed axis; a multiply-add sums both products in float.
struct Bfloat16 {
    using Input = uint16_t;
    using Element = int32_t;
    using Sum = float;
    using Vector = FloatVector;
    static constexpr int kLanes = 16;
    static constexpr int kPacked = 2;
    static constexpr int kDegree = 3;
    static constexpr float kNever = 1e30f;
    static Vector multiply_add(Vector sum, Element a, Vector b) {
        return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
    }
};

inline float widen(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
#endif
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

// Calls `use(row, vector, accumulator)` over a register tile, unrolled, so that the tile stays in registers.
template <class Vector, int R, int V, class Use>
inline __attribute__((always_inline)) void over_tile(Vector (&acc)[R][V], Use use) {
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) use(i, v, acc[i][v]);
}

// acc[r][v] += sum_k a[r, k] b[k, v]: `a` with strides row_step and k_step in elements, `b` one vector at
// vector_step and k_step_b.
template <class A, int R, int V>
inline __attribute__((always_inline)) void register_tile(typename A::Vector (&acc)[R][V], long depth,
                                                         const typename A::Element* a, long row_step, long k_step,
                                                         const typename A::Element* b, long vector_step,
                                                         long k_step_b) {
    using Vector = typename A::Vector;
    for (long k = 0; k < depth; ++k) {
        Vector row[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) row[v] = *(const Vector*)(b + v * vector_step);
        b += k_step_b;
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            typename A::Element left = a[r * row_step];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) acc[r][v] = A::multiply_add(acc[r][v], left, row[v]);
        }
        a += k_step;
    }
}

// Runs `body<V>(first vector)` over `vectors` vectors, kTileVectors at a time and the rest in one narrower tile.
template <class Body>
inline void over_vectors(long vectors, Body body) {
    long first = 0;
    for (; first + kTileVectors <= vectors; first += kTileVectors)
        body(std::integral_constant<int, kTileVectors>{}, first);
    switch (vectors - first) {
        case 3: body(std::integral_constant<int, kManyRegisters ? 3 : 1>{}, first); break;
        case 2: body(std::integral_constant<int, 2>{}, first); break;
        case 1: body(std::integral_constant<int, 1>{}, first); break;
        default: break;
    }
}

// One register tile of c += a b.
template <class A, int R, int V>
inline void add_tile(long depth, const typename A::Element* a, long row_step, long k_step,
                     const typename A::Element* b, long vector_step, long k_step_b, typename A::Sum* c,
                     long row_step_c) {
    using Vector = typename A::Vector;
    Vector acc[R][V];
    over_tile(acc, [&](int i, int v, Vector& x) { x = *(const Vector*)(c + i * row_step_c + v * A::kLanes); });
    register_tile<A, R, V>(acc, depth, a, row_step, k_step, b, vector_step, k_step_b);
    over_tile(acc, [&](int i, int v, Vector& x) { *(Vector*)(c + i * row_step_c + v * A::kLanes) = x; });
}

// c += a b for exactly `rows` rows of c (row_step_c apart, `vectors` wide).
template <class A>
__attribute__((noinline)) void add_product(long rows, long vectors, long depth, const typename A::Element* a, long row_step, long k_step,
                        const typename A::Element* b, long vector_step, long k_step_b, typename A::Sum* c,
                        long row_step_c) {
    over_vectors(vectors, [&](auto width, long first) {
        constexpr int V = decltype(width)::value, R = rows_of(V);
        const typename A::Element* right = b + first * vector_step;
        typename A::Sum* out = c + first * A::kLanes;
        long r = 0;
        auto step = [&](auto height) {
            constexpr int H = decltype(height)::value;
            for (; r + H <= rows; r += H)
                add_tile<A, H, V>(depth, a + r * row_step, row_step, k_step, right, vector_step, k_step_b,
                                  out + r * row_step_c, row_step_c);
        };
        step(std::integral_constant<int, R>{});
        step(std::integral_constant<int, 4>{});
        step(std::integral_constant<int, 2>{});
        step(std::integral_constant<int, 1>{});
    });
}

// Splits a thread's workspace into arrays aligned to vector boundaries.
struct Arena {
    char* next;
    template <class T>
    T* take(long count) {
        T* array = (T*)next;
        next += round_up(count * (long)sizeof(T), 64);
        return array;
    }
};

}  // namespace hc

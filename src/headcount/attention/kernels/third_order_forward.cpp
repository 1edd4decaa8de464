// The forward pass of third-order attention.
//
// Logits are exponentiated, in base 2, while they are still in registers; the contribution of a block of j's is then
// one more matrix product, weights v2, multiplied by v1 and summed over j. Exponents are relative to a running `base`,
// which changes only if a tile exceeds it by kRoom; that tile is then recomputed, so rescaling is rare.
#include "third_order.h"

namespace hc {

constexpr double kRoom = 32.0;  // 2^32 above the base: sums of N^2 such weights are far from overflow

template <class A>
typename A::Sum largest_lane(typename A::Vector x) {
    typename A::Sum top = x[0];
    for (int lane = 1; lane < A::kLanes; ++lane) top = x[lane] > top ? x[lane] : top;
    return top;
}

template <class A>
typename A::Sum largest_logit(long rows, long vectors, long depth, const typename A::Element* left,
                              const typename A::Element* columns, const typename A::Vector* bias) {
    typename A::Vector top = splat(typename A::Vector{}, -A::kNever);
    over_logits<A>(rows, vectors, depth, left, depth, columns, bias, [&](long, long, auto& acc) {
        over_tile(acc, [&](int, int, auto& x) { top = max_of(top, x); });
    });
    return largest_lane<A>(top);
}

inline void store_weights(float* to, FloatVector p) { *(FloatVector*)to = p; }
inline void store_weights(double* to, DoubleVector p) { *(DoubleVector*)to = p; }
#ifdef HC_BFLOAT16
inline void store_weights(uint16_t* to, FloatVector p) {
    _mm256_store_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)p));
}
#endif

// Weights 2^logit of a tile, exponentiated while still in registers. Returns their sum and the largest logit.
template <class A>
typename A::Sum weight_tile(long rows, long vectors, long depth, const typename A::Element* left,
                            const typename A::Element* columns, const typename A::Vector* bias,
                            typename A::Input* weights, typename A::Sum* largest) {
    using Vector = typename A::Vector;
    Vector top = splat(Vector{}, -A::kNever), sum = {};
    over_logits<A>(rows, vectors, depth, left, depth, columns, bias, [&](long r, long first, auto& acc) {
        constexpr int R = std::extent_v<std::remove_reference_t<decltype(acc)>, 0>;
        constexpr int V = std::extent_v<std::remove_reference_t<decltype(acc)>, 1>;
#pragma GCC unroll 12
        for (int i = 0; i < R; ++i) {
            if (r + i >= rows) break;
            typename A::Input* to = weights + (r + i) * kBlockKeys + first * A::kLanes;
            Vector part = {};
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                top = max_of(top, acc[i][v]);
                const Vector p = exp2_of<A::kDegree>(acc[i][v]);
                part += p;
                store_weights(to + v * A::kLanes, p);
            }
            sum += part;
        }
    });
    *largest = largest_lane<A>(top);
    typename A::Sum total = 0;
    for (int lane = 0; lane < A::kLanes; ++lane) total += sum[lane];
    return total;
}

template <class A>
struct ForwardSpace {
    typename A::Element *k2, *v2, *left;
    typename A::Input* weights;
    typename A::Sum *mixed, *q, *out;
    ForwardSpace(char* base, const Shape& s, long* bytes) {
        const Sizes<A> z(s);
        Arena arena{base};
        k2 = arena.take<typename A::Element>(z.key_vectors * z.dim * A::kLanes);
        v2 = arena.take<typename A::Element>(z.keys / A::kPacked * z.v_row);
        left = arena.take<typename A::Element>((kBlockRows + kRowSlack) * z.dim);
        weights = arena.take<typename A::Input>((kBlockRows + kRowSlack) * kBlockKeys);
        mixed = arena.take<typename A::Sum>((kBlockRows + kRowSlack) * z.v_row);
        q = arena.take<typename A::Sum>(s.dim);
        out = arena.take<typename A::Sum>(z.v_row);
        if (bytes) *bytes = arena.next - base;
    }
};

template <class A>
void forward_row(const Shape& s, const ForwardSpace<A>& w, const typename A::Input* k1, const typename A::Input* v1,
                 long j0, long j1, long l0, long l1, typename A::Sum* out, typename A::Sum* lse) {
    using Sum = typename A::Sum;
    using Vector = typename A::Vector;
    const Sizes<A> z(s);
    constexpr long kVectors = kBlockKeys / A::kLanes;
    for (long c = 0; c < s.v_dim; ++c) w.out[c] = 0;
    double base = 0, total = 0;
    bool started = false;
    const long first_vector = l0 / A::kLanes, last_vector = (l1 + A::kLanes - 1) / A::kLanes;
    for (long j = j0; j < j1; j += kBlockRows) {
        const long rows = j1 - j < kBlockRows ? j1 - j : kBlockRows;
        product_block<A>(w.q, k1 + j * s.dim, rows, s.dim, z.dim, w.left);
        std::memset(w.mixed, 0, rows * z.v_row * sizeof(Sum));
        for (long vector = first_vector; vector < last_vector; vector += kVectors) {
            const long vectors = last_vector - vector < kVectors ? last_vector - vector : kVectors;
            const typename A::Element* columns = w.k2 + vector * z.dim * A::kLanes;
            Vector bias[kVectors];
            key_bias<A>(vector, vectors, l0, l1, (Sum)-base, bias);
            if (!started) {
                base = largest_logit<A>(1, vectors, z.dim, w.left, columns, bias);
                key_bias<A>(vector, vectors, l0, l1, (Sum)-base, bias);
                started = true;
            }
            Sum top;
            Sum sum = weight_tile<A>(rows, vectors, z.dim, w.left, columns, bias, w.weights, &top);
            if (top > (Sum)kRoom) {
                const Sum factor = (Sum)std::exp2(-(double)top);
                base += top;
                total *= factor;
                for (long c = 0; c < s.v_dim; ++c) w.out[c] *= factor;
                for (long c = 0; c < rows * z.v_row; ++c) w.mixed[c] *= factor;
                key_bias<A>(vector, vectors, l0, l1, (Sum)-base, bias);
                sum = weight_tile<A>(rows, vectors, z.dim, w.left, columns, bias, w.weights, &top);
            }
            total += sum;
            add_product<A>(rows, z.v_vectors, vectors * A::kLanes / A::kPacked, (const typename A::Element*)w.weights,
                           kBlockKeys / A::kPacked, 1, w.v2 + vector * A::kLanes / A::kPacked * z.v_row, A::kLanes,
                           z.v_row, w.mixed, z.v_row);
        }
        for (long r = 0; r < rows; ++r)
            for (long c = 0; c < s.v_dim; ++c) w.out[c] += widen(v1[(j + r) * s.v_dim + c]) * w.mixed[r * z.v_row + c];
    }
    for (long c = 0; c < s.v_dim; ++c) out[c] = (Sum)(w.out[c] / total);
    *lse = (Sum)((base + std::log2(total)) * kLn2);
}

template <class A>
void forward(const Shape& s, const typename A::Input* q, const typename A::Input* k1, const typename A::Input* k2,
             const typename A::Input* v1, const typename A::Input* v2, const int32_t* ranges, double scale,
             typename A::Sum* out, typename A::Sum* lse, char* space, int threads) {
    const Sizes<A> z(s);
    long bytes = 0;
    ForwardSpace<A>(nullptr, s, &bytes);
#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        const long me = omp_get_thread_num();
#else
        const long me = 0;
#endif
        const ForwardSpace<A> w(space + me * bytes, s, nullptr);
        for (long g = 0; g < s.groups; ++g) {
            const long keys = g * s.tokens * s.dim, values = g * s.tokens * s.v_dim;
            bool packed = false;
            // Rows are independent and, with causal masks, differ in cost, so they are scheduled dynamically. Each thread
            // packs its own copy of the keys, which is 1/N of the work.
#pragma omp for schedule(dynamic, 4) nowait
            for (long i = 0; i < s.rows; ++i) {
                if (!packed) {
                    pack_columns<A>(k2 + keys, s.tokens, s.dim, z.key_vectors, w.k2);
                    pack_rows<A>(v2 + values, s.tokens, s.v_dim, z.keys, z.v_row, w.v2);
                    packed = true;
                }
                const int32_t* range = ranges + g * 4 * s.rows + i;
                const long j0 = range[0], j1 = range[s.rows], l0 = range[2 * s.rows], l1 = range[3 * s.rows];
                const long row = g * s.rows + i;
                if (j0 >= j1 || l0 >= l1) {
                    for (long c = 0; c < s.v_dim; ++c) out[row * s.v_dim + c] = 0;
                    lse[row] = -INFINITY;
                    continue;
                }
                for (long c = 0; c < s.dim; ++c)
                    w.q[c] = (typename A::Sum)(widen(q[row * s.dim + c]) * scale * kLog2e);
                forward_row<A>(s, w, k1 + keys, v1 + values, j0, j1, l0, l1, out + row * s.v_dim, lse + row);
            }
        }
    }
}

}  // namespace hc

extern "C" {
const char* hc_description() {
    return
#if defined(__AVX512F__)
        "AVX-512"
#elif defined(__AVX2__)
        "AVX2"
#elif defined(__AVX__)
        "AVX"
#elif defined(__aarch64__)
        "NEON"
#else
        "128-bit vectors"
#endif
#ifdef HC_BFLOAT16
        ", bfloat16"
#endif
#ifdef _OPENMP
        ", OpenMP"
#endif
        ;
}

#define HC_THIRD_ORDER(NAME, A)                                                                                     \
    long hc_third_order_forward_space_##NAME(long tokens, long dim, long v_dim) {                                  \
        long bytes = 0;                                                                                            \
        hc::ForwardSpace<hc::A>(nullptr, hc::Shape{1, 1, tokens, dim, v_dim}, &bytes);                             \
        return bytes;                                                                                              \
    }                                                                                                              \
    void hc_third_order_forward_##NAME(const void* q, const void* k1, const void* k2, const void* v1,              \
                                       const void* v2, const int32_t* ranges, void* out, void* lse, void* space,   \
                                       long groups, long rows, long tokens, long dim, long v_dim, double scale,    \
                                       long threads) {                                                             \
        using In = hc::A::Input;                                                                                   \
        using Sum = hc::A::Sum;                                                                                    \
        hc::forward<hc::A>(hc::Shape{groups, rows, tokens, dim, v_dim}, (const In*)q, (const In*)k1,               \
                           (const In*)k2, (const In*)v1, (const In*)v2, ranges, scale, (Sum*)out, (Sum*)lse,       \
                           (char*)space, (int)threads);                                                                 \
    }
HC_THIRD_ORDER(float, Float)
HC_THIRD_ORDER(double, Double)
#ifdef HC_BFLOAT16
HC_THIRD_ORDER(bfloat16, Bfloat16)
#endif
}

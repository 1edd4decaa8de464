// The backward pass of third-order attention: every weight is recomputed from the saved log-sum-exp.
//
// With P the weights, g the output's gradient and dP_jl = <g_i * v1_j, v2_l> - offset_i, the logits'
// gradient is dS = P dP. For each block of j, with left_j = scale q_i * k1_j and carried_j = g_i * v1_j:
//   d_left = dS k2 (gives dq and dk1), mixed = P v2 (gives dv1), dk2 += dS^T left, dv2 += P^T carried.
// Six products in all, two of which recompute P and dP. Sums over i are stored per thread and added in thread order.
#include "third_order.h"

namespace hc {

template <class A>
struct BackwardSpace {
    using Sum = typename A::Sum;
    using Element = typename A::Element;
    using Input = typename A::Input;
    long k_row, v_row;        // numbers of a row of keys and of values, padded to vectors
    long k_depth, v_depth;    // elements summed in a logit and in a dP
    long k_step, v_step;      // elements between rows of left and of carried
    Element *k2_columns, *v2_columns, *k2_rows, *v2_rows;
    Sum *dk1, *dk2, *dv1, *dv2;
    Element *left, *carried;  // [j][c]
    Input *weights, *d_logits;  // [j][l]
    // The same with j as the summed axis. If an element has one number, these are the arrays above.
    Element *left_across, *carried_across, *weights_across, *d_logits_across;
    Sum *exact_weights;       // before rounding to the type of factors
    Sum *d_left, *mixed, *q, *q_scaled, *dq;
    BackwardSpace(char* base, const Shape& s, long* bytes) {
        const Sizes<A> z(s);
        Arena arena{base};
        k_row = round_up(s.dim, A::kLanes);
        v_row = z.v_row;
        k_depth = z.dim;
        v_depth = (s.v_dim + A::kPacked - 1) / A::kPacked;
        k_step = A::kPacked == 1 ? k_row : k_depth;
        v_step = A::kPacked == 1 ? v_row : v_depth;
        const long block = kBlockRows + kRowSlack + 1;
        k2_columns = arena.take<Element>(z.keys * k_depth);
        v2_columns = arena.take<Element>(z.keys * v_depth);
        k2_rows = arena.take<Element>(z.keys / A::kPacked * k_row);
        v2_rows = arena.take<Element>(z.keys / A::kPacked * v_row);
        dk1 = arena.take<Sum>(s.tokens * k_row);
        dk2 = arena.take<Sum>(z.keys * k_row);
        dv1 = arena.take<Sum>(s.tokens * v_row);
        dv2 = arena.take<Sum>(z.keys * v_row);
        left = left_across = arena.take<Element>(block * k_step);
        carried = carried_across = arena.take<Element>(block * v_step);
        weights = arena.take<Input>(block * kBlockKeys);
        d_logits = arena.take<Input>(block * kBlockKeys);
        exact_weights = (Sum*)weights;
        weights_across = (Element*)weights;
        d_logits_across = (Element*)d_logits;
        if (A::kPacked == 2) {
            left_across = arena.take<Element>(block / 2 * k_row);
            carried_across = arena.take<Element>(block / 2 * v_row);
            weights_across = arena.take<Element>(block / 2 * kBlockKeys);
            d_logits_across = arena.take<Element>(block / 2 * kBlockKeys);
            exact_weights = arena.take<Sum>(block * kBlockKeys);
        }
        d_left = arena.take<Sum>(block * k_row);
        mixed = arena.take<Sum>(block * v_row);
        q = arena.take<Sum>(k_row);
        q_scaled = arena.take<Sum>(k_row);
        dq = arena.take<Sum>(k_row);
        if (bytes) *bytes = arena.next - base;
    }
};

// Stores a register tile of weights or of d_logits: by rows, and for pairs also across rows, with zeros for missing
// rows, since they must not contribute to a sum over j.
template <class A, int R, int V>
inline __attribute__((always_inline)) void store_tile(typename A::Vector (&acc)[R][V], long rows_left,
                                                      typename A::Input* by_rows, typename A::Element* across) {
    if constexpr (A::kPacked == 1) {
        over_tile(acc, [&](int i, int v, typename A::Vector& x) {
            *(typename A::Vector*)(by_rows + i * kBlockKeys + v * A::kLanes) = x;
        });
    } else {
#ifdef HC_BFLOAT16
        const __m512i together = (__m512i)(Int16Vector){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
#pragma GCC unroll 12
        for (int i = 0; i < R; i += 2) {
            if (i >= rows_left) break;
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                const __m512 low = (__m512)acc[i][v], high = i + 1 < rows_left ? (__m512)acc[i + 1][v] : __m512{};
                const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
                uint16_t* to = by_rows + i * kBlockKeys + v * A::kLanes;
                _mm256_store_si256((__m256i*)to, _mm512_castsi512_si256(both));
                _mm256_store_si256((__m256i*)(to + kBlockKeys), _mm512_extracti64x4_epi64(both, 1));
                _mm512_store_si512(across + i / 2 * kBlockKeys + v * A::kLanes,
                                   _mm512_permutexvar_epi16(together, both));
            }
        }
#endif
    }
}

// [j][c] -> [pair of j][c]: the right operand of a sum over j.
template <class A>
void lay_across(const typename A::Element* from, long rows, long dim, long step, long row, typename A::Element* to) {
    const typename A::Input* numbers = (const typename A::Input*)from;
    for (long r = 0; r < rows; r += 2) {
        const typename A::Input *low = numbers + r * step * A::kPacked, *high = low + step * A::kPacked;
        for (long c = 0; c < dim; ++c)
            to[r / 2 * row + c] = (typename A::Element)((uint32_t)low[c] | (uint32_t)high[c] << 16);
    }
}

template <class A>
void backward_row(const Shape& s, const BackwardSpace<A>& w, const typename A::Sum* grad,
                  const typename A::Input* k1, const typename A::Input* v1, typename A::Sum lse,
                  typename A::Sum offset, long j0, long j1, long l0, long l1) {
    using Sum = typename A::Sum;
    using Element = typename A::Element;
    using Vector = typename A::Vector;
    constexpr long kVectors = kBlockKeys / A::kLanes, kPerRow = kBlockKeys / A::kPacked;
    const long first_vector = l0 / A::kLanes, last_vector = (l1 + A::kLanes - 1) / A::kLanes;
    const long k_vectors = w.k_row / A::kLanes, v_vectors = w.v_row / A::kLanes;
    for (long j = j0; j < j1; j += kBlockRows) {
        const long rows = j1 - j < kBlockRows ? j1 - j : kBlockRows, pairs = (rows + A::kPacked - 1) / A::kPacked;
        product_block<A>(w.q_scaled, k1 + j * s.dim, rows, s.dim, w.k_step, w.left);
        product_block<A>(grad, v1 + j * s.v_dim, rows, s.v_dim, w.v_step, w.carried);
        if constexpr (A::kPacked == 2) {
            lay_across<A>(w.left, rows, s.dim, w.k_step, w.k_row, w.left_across);
            lay_across<A>(w.carried, rows, s.v_dim, w.v_step, w.v_row, w.carried_across);
        }
        std::memset(w.d_left, 0, rows * w.k_row * sizeof(Sum));
        std::memset(w.mixed, 0, rows * w.v_row * sizeof(Sum));
        for (long vector = first_vector; vector < last_vector; vector += kVectors) {
            const long vectors = last_vector - vector < kVectors ? last_vector - vector : kVectors;
            const long key = vector * A::kLanes, keys = vectors * A::kLanes;
            Vector bias[kVectors];
            key_bias<A>(vector, vectors, l0, l1, -lse, bias);
            over_logits<A>(rows, vectors, w.k_depth, w.left, w.k_step, w.k2_columns + key * w.k_depth, bias,
                           [&](long r, long first, auto& acc) {
                               const long at = r * kBlockKeys + first * A::kLanes;
                               over_tile(acc, [&](int i, int v, Vector& x) {
                                   x = exp2_of<A::kDegree>(x);
                                   if (A::kPacked == 2)
                                       *(Vector*)(w.exact_weights + at + i * kBlockKeys + v * A::kLanes) = x;
                               });
                               store_tile<A>(acc, rows - r, w.weights + at,
                                             w.weights_across + r / A::kPacked * kBlockKeys + first * A::kLanes);
                           });
            for (long v = 0; v < vectors; ++v) bias[v] = splat(Vector{}, -offset);
            over_logits<A>(rows, vectors, w.v_depth, w.carried, w.v_step, w.v2_columns + key * w.v_depth, bias,
                           [&](long r, long first, auto& acc) {
                               const long at = r * kBlockKeys + first * A::kLanes;
                               over_tile(acc, [&](int i, int v, Vector& x) {
                                   x *= *(const Vector*)(w.exact_weights + at + i * kBlockKeys + v * A::kLanes);
                               });
                               store_tile<A>(acc, rows - r, w.d_logits + at,
                                             w.d_logits_across + r / A::kPacked * kBlockKeys + first * A::kLanes);
                           });
            const long key_elements = keys / A::kPacked, key_row = key / A::kPacked;
            add_product<A>(rows, k_vectors, key_elements, (const Element*)w.d_logits, kPerRow, 1,
                           w.k2_rows + key_row * w.k_row, A::kLanes, w.k_row, w.d_left, w.k_row);
            add_product<A>(rows, v_vectors, key_elements, (const Element*)w.weights, kPerRow, 1,
                           w.v2_rows + key_row * w.v_row, A::kLanes, w.v_row, w.mixed, w.v_row);
            add_product<A>(keys, k_vectors, pairs, w.d_logits_across, 1, kBlockKeys, w.left_across, A::kLanes,
                           w.k_row, w.dk2 + key * w.k_row, w.k_row);
            add_product<A>(keys, v_vectors, pairs, w.weights_across, 1, kBlockKeys, w.carried_across, A::kLanes,
                           w.v_row, w.dv2 + key * w.v_row, w.v_row);
        }
        for (long r = 0; r < rows; ++r) {
            const Sum *d_left = w.d_left + r * w.k_row, *mixed = w.mixed + r * w.v_row;
            const typename A::Input* key = k1 + (j + r) * s.dim;
            Sum *dk1 = w.dk1 + (j + r) * w.k_row, *dv1 = w.dv1 + (j + r) * w.v_row;
            for (long c = 0; c < s.dim; ++c) {
                w.dq[c] += d_left[c] * widen(key[c]);
                dk1[c] += d_left[c] * w.q[c];
            }
            for (long c = 0; c < s.v_dim; ++c) dv1[c] += mixed[c] * grad[c];
        }
    }
}

// to = factor * the sum over threads of the array at `part` in each thread's workspace, rows first..last of `dim` numbers.
template <class Sum>
void reduce(const Sum* part, long bytes_apart, long threads, long first, long last, long row, long dim, double factor,
            Sum* to) {
    for (long r = first; r < last; ++r)
        for (long c = 0; c < dim; ++c) {
            Sum sum = 0;
            for (long t = 0; t < threads; ++t) sum += *(const Sum*)((const char*)(part + r * row + c) + t * bytes_apart);
            to[r * dim + c] = (Sum)(factor * sum);
        }
}

template <class A>
void backward(const Shape& s, const typename A::Sum* grad, const typename A::Sum* offset, const typename A::Input* q,
              const typename A::Input* k1, const typename A::Input* k2, const typename A::Input* v1,
              const typename A::Input* v2, const typename A::Sum* lse, const int32_t* ranges, double scale,
              typename A::Sum* dq, typename A::Sum* dk1, typename A::Sum* dk2, typename A::Sum* dv1,
              typename A::Sum* dv2, char* space, int threads) {
    using Sum = typename A::Sum;
    const Sizes<A> z(s);
    long bytes = 0;
    BackwardSpace<A>(nullptr, s, &bytes);
#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        const long me = omp_get_thread_num(), all = omp_get_num_threads();
#else
        const long me = 0, all = 1;
#endif
        const BackwardSpace<A> w(space + me * bytes, s, nullptr), first(space, s, nullptr);
        // Row padding must read as zeros, and slack that is never written must contain finite numbers.
        std::memset((char*)w.left, 0, (char*)w.q - (char*)w.left);
        for (long g = 0; g < s.groups; ++g) {
            const long keys = g * s.tokens * s.dim, values = g * s.tokens * s.v_dim;
            pack_columns<A>(k2 + keys, s.tokens, s.dim, z.key_vectors, w.k2_columns);
            pack_columns<A>(v2 + values, s.tokens, s.v_dim, z.key_vectors, w.v2_columns);
            pack_rows<A>(k2 + keys, s.tokens, s.dim, z.keys, w.k_row, w.k2_rows);
            pack_rows<A>(v2 + values, s.tokens, s.v_dim, z.keys, w.v_row, w.v2_rows);
            std::memset(w.dk1, 0, s.tokens * w.k_row * sizeof(Sum));
            std::memset(w.dk2, 0, z.keys * w.k_row * sizeof(Sum));
            std::memset(w.dv1, 0, s.tokens * w.v_row * sizeof(Sum));
            std::memset(w.dv2, 0, z.keys * w.v_row * sizeof(Sum));
            for (long i = me; i < s.rows; i += all) {
                const int32_t* range = ranges + g * 4 * s.rows + i;
                const long j0 = range[0], j1 = range[s.rows], l0 = range[2 * s.rows], l1 = range[3 * s.rows];
                const long row = g * s.rows + i;
                std::memset(w.dq, 0, w.k_row * sizeof(Sum));
                if (j0 < j1 && l0 < l1) {
                    for (long c = 0; c < s.dim; ++c) {
                        w.q[c] = widen(q[row * s.dim + c]);
                        w.q_scaled[c] = (Sum)(w.q[c] * scale * kLog2e);
                    }
                    backward_row<A>(s, w, grad + row * s.v_dim, k1 + keys, v1 + values, (Sum)(lse[row] * kLog2e),
                                    offset[row], j0, j1, l0, l1);
                }
                for (long c = 0; c < s.dim; ++c) dq[row * s.dim + c] = (Sum)(scale * w.dq[c]);
            }
#pragma omp barrier
            const long from = s.tokens * me / all, to = s.tokens * (me + 1) / all;
            reduce(first.dk1, bytes, all, from, to, w.k_row, s.dim, scale, dk1 + keys);
            reduce(first.dk2, bytes, all, from, to, w.k_row, s.dim, kLn2, dk2 + keys);
            reduce(first.dv1, bytes, all, from, to, w.v_row, s.v_dim, 1.0, dv1 + values);
            reduce(first.dv2, bytes, all, from, to, w.v_row, s.v_dim, 1.0, dv2 + values);
#pragma omp barrier
        }
    }
}

}  // namespace hc

extern "C" {
#define HC_THIRD_ORDER_BACKWARD(NAME, A)                                                                            \
    long hc_third_order_backward_space_##NAME(long tokens, long dim, long v_dim) {                                 \
        long bytes = 0;                                                                                            \
        hc::BackwardSpace<hc::A>(nullptr, hc::Shape{1, 1, tokens, dim, v_dim}, &bytes);                            \
        return bytes;                                                                                              \
    }                                                                                                              \
    void hc_third_order_backward_##NAME(const void* grad, const void* offset, const void* q, const void* k1,       \
                                        const void* k2, const void* v1, const void* v2, const void* lse,           \
                                        const int32_t* ranges, void* dq, void* dk1, void* dk2, void* dv1,          \
                                        void* dv2, void* space, long groups, long rows, long tokens, long dim,     \
                                        long v_dim, double scale, long threads) {                                  \
        using In = hc::A::Input;                                                                                   \
        using Sum = hc::A::Sum;                                                                                    \
        hc::backward<hc::A>(hc::Shape{groups, rows, tokens, dim, v_dim}, (const Sum*)grad, (const Sum*)offset,     \
                            (const In*)q, (const In*)k1, (const In*)k2, (const In*)v1, (const In*)v2,         \
                            (const Sum*)lse, ranges, scale, (Sum*)dq, (Sum*)dk1, (Sum*)dk2, (Sum*)dv1, (Sum*)dv2,  \
                            (char*)space, (int)threads);                                                                \
    }
HC_THIRD_ORDER_BACKWARD(float, Float)
HC_THIRD_ORDER_BACKWARD(double, Double)
#ifdef HC_BFLOAT16
HC_THIRD_ORDER_BACKWARD(bfloat16, Bfloat16)
#endif
}

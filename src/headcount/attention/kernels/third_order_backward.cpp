// The backward pass of third-order attention: every weight is computed again, from the saved log-sum-exp.
//
// With P the weights, g the output's gradient and dP_jl = <g_i * v1_j, v2_l> - offset_i, the logits'
// gradient is dS = P dP. For each block of j, with left_j = scale q_i * k1_j and carried_j = g_i * v1_j:
//   d_left = dS k2 (gives dq and dk1), mixed = P v2 (gives dv1), dk2 += dS^T left, dv2 += P^T carried.
// Six products in all, two of which recompute P and dP. Sums over i are kept by each thread and added in order of threads.
#include "third_order.h"

namespace hc {

template <class A>
struct BackwardSpace {
    using Sum = typename A::Sum;
    long k_row, v_row;  // numbers of a row of keys and of values, padded to vectors
    Sum *k2_columns, *v2_columns, *k2_rows, *v2_rows;
    Sum *dk1, *dk2, *dv1, *dv2;
    Sum *left, *carried, *weights, *d_logits, *d_left, *mixed, *q, *dq;
    BackwardSpace(char* base, const Shape& s, long* bytes) {
        const Sizes<A> z(s);
        Arena arena{base};
        k_row = round_up(s.dim, A::kLanes);
        v_row = z.v_row;
        const long block = kBlockRows + kRowSlack;
        k2_columns = arena.take<Sum>(z.keys * s.dim);
        v2_columns = arena.take<Sum>(z.keys * s.v_dim);
        k2_rows = arena.take<Sum>(z.keys * k_row);
        v2_rows = arena.take<Sum>(z.keys * v_row);
        dk1 = arena.take<Sum>(s.tokens * k_row);
        dk2 = arena.take<Sum>(z.keys * k_row);
        dv1 = arena.take<Sum>(s.tokens * v_row);
        dv2 = arena.take<Sum>(z.keys * v_row);
        left = arena.take<Sum>(block * k_row);
        carried = arena.take<Sum>(block * v_row);
        weights = arena.take<Sum>(block * kBlockKeys);
        d_logits = arena.take<Sum>(block * kBlockKeys);
        d_left = arena.take<Sum>(block * k_row);
        mixed = arena.take<Sum>(block * v_row);
        q = arena.take<Sum>(k_row);
        dq = arena.take<Sum>(k_row);
        if (bytes) *bytes = arena.next - base;
    }
};

template <class A>
void backward_row(const Shape& s, const BackwardSpace<A>& w, const typename A::Sum* q, const typename A::Sum* grad,
                  const typename A::Sum* k1, const typename A::Sum* v1, typename A::Sum lse, typename A::Sum offset,
                  long j0, long j1, long l0, long l1) {
    using Sum = typename A::Sum;
    using Vector = typename A::Vector;
    constexpr long kVectors = kBlockKeys / A::kLanes;
    const long first_vector = l0 / A::kLanes, last_vector = (l1 + A::kLanes - 1) / A::kLanes;
    for (long j = j0; j < j1; j += kBlockRows) {
        const long rows = j1 - j < kBlockRows ? j1 - j : kBlockRows;
        product_block<A>(w.q, k1 + j * s.dim, rows, s.dim, w.k_row, w.left);
        product_block<A>(grad, v1 + j * s.v_dim, rows, s.v_dim, w.v_row, w.carried);
        std::memset(w.d_left, 0, rows * w.k_row * sizeof(Sum));
        std::memset(w.mixed, 0, rows * w.v_row * sizeof(Sum));
        for (long vector = first_vector; vector < last_vector; vector += kVectors) {
            const long vectors = last_vector - vector < kVectors ? last_vector - vector : kVectors;
            const long key = vector * A::kLanes, keys = vectors * A::kLanes;
            Vector bias[kVectors];
            key_bias<A>(vector, vectors, l0, l1, -lse, bias);
            over_logits<A>(rows, vectors, s.dim, w.left, w.k_row, w.k2_columns + key * s.dim, bias,
                           [&](long r, long first, auto& acc) {
                               Sum* to = w.weights + r * kBlockKeys + first * A::kLanes;
                               over_tile(acc, [&](int i, int v, Vector& x) {
                                   *(Vector*)(to + i * kBlockKeys + v * A::kLanes) = exp2_of<A::kDegree>(x);
                               });
                           });
            for (long v = 0; v < vectors; ++v) bias[v] = splat(Vector{}, -offset);
            over_logits<A>(rows, vectors, s.v_dim, w.carried, w.v_row, w.v2_columns + key * s.v_dim, bias,
                           [&](long r, long first, auto& acc) {
                               const long tile = r * kBlockKeys + first * A::kLanes;
                               over_tile(acc, [&](int i, int v, Vector& x) {
                                   const long at = tile + i * kBlockKeys + v * A::kLanes;
                                   *(Vector*)(w.d_logits + at) = x * *(const Vector*)(w.weights + at);
                               });
                           });
            const long k_vectors = w.k_row / A::kLanes, v_vectors = w.v_row / A::kLanes;
            add_product<A>(rows, k_vectors, keys, w.d_logits, kBlockKeys, 1, w.k2_rows + key * w.k_row, A::kLanes,
                           w.k_row, w.d_left, w.k_row);
            add_product<A>(rows, v_vectors, keys, w.weights, kBlockKeys, 1, w.v2_rows + key * w.v_row, A::kLanes,
                           w.v_row, w.mixed, w.v_row);
            add_product<A>(keys, k_vectors, rows, w.d_logits, 1, kBlockKeys, w.left, A::kLanes, w.k_row,
                           w.dk2 + key * w.k_row, w.k_row);
            add_product<A>(keys, v_vectors, rows, w.weights, 1, kBlockKeys, w.carried, A::kLanes, w.v_row,
                           w.dv2 + key * w.v_row, w.v_row);
        }
        for (long r = 0; r < rows; ++r) {
            const Sum *d_left = w.d_left + r * w.k_row, *mixed = w.mixed + r * w.v_row, *key = k1 + (j + r) * s.dim;
            Sum *dk1 = w.dk1 + (j + r) * w.k_row, *dv1 = w.dv1 + (j + r) * w.v_row;
            for (long c = 0; c < s.dim; ++c) {
                w.dq[c] += d_left[c] * key[c];
                dk1[c] += d_left[c] * q[c];
            }
            for (long c = 0; c < s.v_dim; ++c) dv1[c] += mixed[c] * grad[c];
        }
    }
}

// to = factor * the sum over threads of the array at `part` in each one's space, rows first..last of `dim` numbers.
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
void backward(const Shape& s, const typename A::Sum* grad, const typename A::Sum* offset, const typename A::Sum* q,
              const typename A::Sum* k1, const typename A::Sum* k2, const typename A::Sum* v1,
              const typename A::Sum* v2, const typename A::Sum* lse, const int32_t* ranges, double scale,
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
        std::memset(w.left, 0, (kBlockRows + kRowSlack) * w.k_row * sizeof(Sum));
        std::memset(w.carried, 0, (kBlockRows + kRowSlack) * w.v_row * sizeof(Sum));
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
                    for (long c = 0; c < s.dim; ++c) w.q[c] = (Sum)(q[row * s.dim + c] * scale * kLog2e);
                    backward_row<A>(s, w, q + row * s.dim, grad + row * s.v_dim, k1 + keys, v1 + values,
                                    (Sum)(lse[row] * kLog2e), offset[row], j0, j1, l0, l1);
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
        using Sum = hc::A::Sum;                                                                                    \
        hc::backward<hc::A>(hc::Shape{groups, rows, tokens, dim, v_dim}, (const Sum*)grad, (const Sum*)offset,     \
                            (const Sum*)q, (const Sum*)k1, (const Sum*)k2, (const Sum*)v1, (const Sum*)v2,         \
                            (const Sum*)lse, ranges, scale, (Sum*)dq, (Sum*)dk1, (Sum*)dk2, (Sum*)dv1, (Sum*)dv2,  \
                            (char*)space, (int)threads);                                                                \
    }
HC_THIRD_ORDER_BACKWARD(float, Float)
HC_THIRD_ORDER_BACKWARD(double, Double)
}

// Third-order attention: out_i = sum_jl softmax_jl(scale sum_c q_ic k1_jc k2_lc) v1_j * v2_l, and its gradients.
//
// For one query i and a block of kBlockRows j's, the rows A_j = scale q_i * k1_j turn the logits into one matrix product
// A k2^T, and the contribution into (exp(logits) v2) * v1 summed over j: another. Both run on blocks of kBlockKeys l's, so
// that the tile of logits stays in the first-level cache; the exponentials, in base 2, take one pass over it.
//
// Softmax: exponents are relative to a running `base`; it moves only when a tile exceeds it by kRoom, so that almost no
// tile rescales anything. The backward pass recomputes the tile from the saved log-sum-exp.
//
// Shapes: q (G, R, d), k1, k2 (G, N, d), v1, v2 (G, N, e), ranges (G, 2, 2, R), out (G, R, e), lse (G, R).
#include "simd.h"

namespace hc {

constexpr long kBlockRows = 48;
constexpr long kBlockKeys = 64;
constexpr double kRoom = 32.0;  // 2^32 above the base: sums of N^2 such weights are far from overflow
constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

struct Shape {
    long groups, rows, tokens, dim, v_dim;
};

template <class A>
struct Sizes {
    long dim;         // elements of a row of keys
    long key_vectors;  // vectors of keys in a group
    long keys;        // keys, padded to whole vectors
    long v_vectors;   // vectors of a row of values
    long v_row;       // numbers of a row of values, padded
    explicit Sizes(const Shape& s)
        : dim((s.dim + A::kPacked - 1) / A::kPacked),
          key_vectors((s.tokens + A::kLanes - 1) / A::kLanes),
          keys(key_vectors * A::kLanes),
          v_vectors((s.v_dim + A::kLanes - 1) / A::kLanes),
          v_row(v_vectors * A::kLanes) {}
};

// Keys by vectors of tokens: [vector of l][c][lane], zeros beyond the last token.
template <class A>
void pack_columns(const typename A::Input* from, long tokens, long dim, long vectors, typename A::Element* to) {
    const long depth = (dim + A::kPacked - 1) / A::kPacked;
    for (long vector = 0; vector < vectors; ++vector)
        for (long c = 0; c < depth; ++c)
            for (long lane = 0; lane < A::kLanes; ++lane) {
                const long token = vector * A::kLanes + lane;
                typename A::Input pair[A::kPacked] = {};
                for (long p = 0; p < A::kPacked; ++p)
                    if (token < tokens && c * A::kPacked + p < dim) pair[p] = from[token * dim + c * A::kPacked + p];
                std::memcpy(to + (vector * depth + c) * A::kLanes + lane, pair, sizeof(pair));
            }
}

// Values by tokens (pairs of tokens for bfloat16): [l][c], zeros beyond the last token and channel.
template <class A>
void pack_rows(const typename A::Input* from, long tokens, long dim, long padded_tokens, long row,
               typename A::Element* to) {
    for (long l = 0; l < padded_tokens / A::kPacked; ++l)
        for (long c = 0; c < row; ++c) {
            typename A::Input pair[A::kPacked] = {};
            for (long p = 0; p < A::kPacked; ++p)
                if (l * A::kPacked + p < tokens && c < dim) pair[p] = from[(l * A::kPacked + p) * dim + c];
            std::memcpy(to + l * row + c, pair, sizeof(pair));
        }
}

// Row j of the left operand, x * y_j; the numbers are rounded to what the arithmetic multiplies.
template <class A>
void product_row(const typename A::Sum* x, const typename A::Input* y, long dim, typename A::Element* to) {
    if constexpr (A::kPacked == 1) {
        for (long c = 0; c < dim; ++c) to[c] = x[c] * y[c];
    } else {
#ifdef HC_BFLOAT16
        uint16_t* out = (uint16_t*)to;
        long c = 0;
        for (; c + 16 <= dim; c += 16) {
            __m512 wide = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(y + c))), 16);
            __m512 product = _mm512_mul_ps(wide, _mm512_loadu_ps(x + c));
            _mm256_storeu_si256((__m256i*)(out + c), (__m256i)_mm512_cvtneps_pbh(product));
        }
        if (c < dim) {
            float rest[16] = {};
            for (long i = c; i < dim; ++i) rest[i - c] = x[i] * widen(y[i]);
            uint16_t rounded[16];
            _mm256_storeu_si256((__m256i*)rounded, (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(rest)));
            std::memcpy(out + c, rounded, (round_up(dim, 2) - c) * 2);
        }
#endif
    }
}

// The left operand for rows of j: row j - j0; the slack rows repeat the last, so that they change no maximum.
template <class A>
void product_block(const typename A::Sum* x, const typename A::Input* y, long rows, long dim, long row_step,
                   typename A::Element* to) {
    for (long r = 0; r < rows; ++r) product_row<A>(x, y + r * dim, dim, to + r * row_step);
    for (long r = rows; r < rows + kRowSlack; ++r)
        std::memcpy(to + r * row_step, to + (rows - 1) * row_step, row_step * sizeof(typename A::Element));
}

// Biases for a run of key vectors: `value`, or -kNever on keys outside of [low, high).
template <class A>
void key_bias(long first_vector, long vectors, long low, long high, typename A::Sum value, typename A::Vector* bias) {
    for (long v = 0; v < vectors; ++v)
        for (long lane = 0; lane < A::kLanes; ++lane) {
            const long key = (first_vector + v) * A::kLanes + lane;
            bias[v][lane] = key >= low && key < high ? value : -A::kNever;
        }
}

// The logits bias + left columns^T of `rows` rows, each register tile handed to `use(row, vector, accumulators)`.
template <class A, class Use>
inline void over_logits(long rows, long vectors, long depth, const typename A::Element* left, long row_step,
                        const typename A::Element* columns, const typename A::Vector* bias, Use use) {
    using Vector = typename A::Vector;
    over_vectors(vectors, [&](auto width, long first) {
        constexpr int V = decltype(width)::value, R = rows_of(V);
        for (long r = 0; r < rows; r += R) {
            Vector acc[R][V];
            over_tile(acc, [&](int, int v, Vector& x) { x = bias[first + v]; });
            register_tile<A, R, V>(acc, depth, left + r * row_step, row_step, 1, columns + first * depth * A::kLanes,
                                   depth * A::kLanes, A::kLanes);
            use(r, first, acc);
        }
    });
}

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

// Weights 2^logit of a tile, exponentiated while still in registers. Returns their sum, and the largest logit.
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
        const long me = omp_get_thread_num(), all = omp_get_num_threads();
#else
        const long me = 0, all = 1;
#endif
        const ForwardSpace<A> w(space + me * bytes, s, nullptr);
        for (long g = 0; g < s.groups; ++g) {
            // Rows are dealt in turn: their costs differ with causal masks. Each thread packs its own keys.
            long i = (me + all - g % all) % all;
            if (i >= s.rows) continue;
            const long keys = g * s.tokens * s.dim, values = g * s.tokens * s.v_dim;
            pack_columns<A>(k2 + keys, s.tokens, s.dim, z.key_vectors, w.k2);
            pack_rows<A>(v2 + values, s.tokens, s.v_dim, z.keys, z.v_row, w.v2);
            for (; i < s.rows; i += all) {
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

// The gradients. With P the weights, g the output's gradient and dP_jl = <g_i * v1_j, v2_l> - offset_i, the logits'
// gradient is dS = P dP. For each block of j, with left_j = scale q_i * k1_j and carried_j = g_i * v1_j:
//   d_left = dS k2 (gives dq and dk1), mixed = P v2 (gives dv1), dk2 += dS^T left, dv2 += P^T carried.
// Six products in all, two of which recompute P and dP. Sums over i are kept by each thread and added in order of threads.
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
HC_THIRD_ORDER(float, Float)
HC_THIRD_ORDER(double, Double)
#ifdef HC_BFLOAT16
HC_THIRD_ORDER(bfloat16, Bfloat16)
#endif
HC_THIRD_ORDER_BACKWARD(float, Float)
HC_THIRD_ORDER_BACKWARD(double, Double)
}

// Shared by the forward and backward pass of third-order attention: packing, left operands, tiles of logits.
//
// out_i = sum_jl softmax_jl(scale sum_c q_ic k1_jc k2_lc) v1_j * v2_l. For one query i and a block of kBlockRows j's, the
// rows left_j = scale q_i * k1_j turn the logits into one matrix product left k2^T. It runs on blocks of kBlockKeys l's,
// so that a tile of logits stays in the first caches; 64 to 256 differ by 3% in time, and longer is better.
//
// Shapes: q (G, R, d), k1, k2 (G, N, d), v1, v2 (G, N, e), ranges (G, 2, 2, R), out (G, R, e), lse (G, R).
#pragma once
#include "simd.h"

namespace hc {

constexpr long kBlockRows = 48;
constexpr long kBlockKeys = 256;
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

// Row j of the left operand, x * y_j; the numbers are rounded to the element type of the arithmetic.
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

// The left operand for rows of j: row j - j0; the slack rows repeat the last row, so that they do not change the maximum.
template <class A>
void product_block(const typename A::Sum* x, const typename A::Input* y, long rows, long dim, long row_step,
                   typename A::Element* to) {
    for (long r = 0; r < rows; ++r) product_row<A>(x, y + r * dim, dim, to + r * row_step);
    for (long r = rows; r < rows + kRowSlack; ++r)
        std::memcpy(to + r * row_step, to + (rows - 1) * row_step, row_step * sizeof(typename A::Element));
}

// Biases for a run of key vectors: `value`, or -kNever for keys outside [low, high).
template <class A>
void key_bias(long first_vector, long vectors, long low, long high, typename A::Sum value, typename A::Vector* bias) {
    for (long v = 0; v < vectors; ++v)
        for (long lane = 0; lane < A::kLanes; ++lane) {
            const long key = (first_vector + v) * A::kLanes + lane;
            bias[v][lane] = key >= low && key < high ? value : -A::kNever;
        }
}

// The logits bias + left columns^T of `rows` rows, each register tile passed to `use(row, vector, accumulators)`.
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

}  // namespace hc

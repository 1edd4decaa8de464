// The matrix products of factorised Strassen attention, fused with the preceding and following operations.
//
// With e1 (I, J), e2 (I, L), e12 (J, L) the scaled exponentials of one group (see factorised.py):
//   inner_ijc = sum_l e12_jl e2_il v2_lc
//   forward:  out_ic = sum_j e1_ij v1_jc inner_ijc
//   backward: da_ij = sum_c pull_ic v1_jc inner_ijc,  dv1_jc = sum_i e1_ij pull_ic inner_ijc
//             cross_jl = sum_ic (e1_ij v1_jc pull_ic) (e2_il v2_lc)
// `inner` is never stored: a register tile of it (a few j, all c) is consumed as soon as a block of l is summed, since all
// later operations are linear in it. The other half of the backward is the same with j and l exchanged.
//
// Ranges (I, 4): j0, j1, l0, l1 of each row, relative to the arrays; the exponentials are zero outside.
#include "simd.h"

namespace hc {

constexpr long kDepth = 128;    // l's per block, so that a block of v2 fits into the first-level cache
constexpr long kCrossRows = 4;  // rows i whose channels form one block of `cross`

struct Triangle {
    long rows, first, second, dim;  // I, J, L, channels
};

constexpr long kTileRows = rows_of(kTileVectors);

// The left operand in the order in which it is accessed: [block of l][group of kTileRows j's][l in the block][j in the group].
template <class T>
void pack_left(const T* e12, long j_step, long l_step, long first, long second, T* to, int threads) {
    const long padded = round_up(first, kTileRows);
#pragma omp parallel for num_threads(threads)
    for (long l0 = 0; l0 < second; l0 += kDepth) {
        const long depth = second - l0 < kDepth ? second - l0 : kDepth;
        T* next = to + l0 * padded;
        for (long j = 0; j < padded; j += kTileRows)
            for (long l = l0; l < l0 + depth; ++l)
                for (long r = j; r < j + kTileRows; ++r) *next++ = r < first ? e12[r * j_step + l * l_step] : T(0);
    }
}

template <class T>
T sum_lanes(const T* x, long count) {
    T total = 0;
    for (long i = 0; i < count; ++i) total += x[i];
    return total;
}

template <class A>
struct InnerSpace {
    using Sum = typename A::Sum;
    Sum *right, *out;
    InnerSpace(char* base, const Triangle& s, long* bytes) {
        Arena arena{base};
        const long row = round_up(s.dim, A::kLanes);
        right = arena.take<Sum>(kDepth * row);
        out = arena.take<Sum>((s.first + 1) * row);  // dv1, or one row of out
        if (bytes) *bytes = arena.next - base;
    }
};

// One block of l for row i: every register tile of inner_ij. is passed to `use(j, first vector, accumulators)`.
template <class A, class Use>
void inner_block(long depth, const typename A::Sum* left, const typename A::Sum* right, long row,
                 long j0, long j1, Use use) {
    over_vectors(row / A::kLanes, [&](auto width, long first) {
        constexpr int V = decltype(width)::value, R = kTileRows;
        for (long j = j0 / R * R; j < j1; j += R) {
            typename A::Vector acc[R][V] = {};
            register_tile<A, R, V>(acc, depth, left + j * depth, 1, R, right + first * A::kLanes, A::kLanes, row);
            use(j, first, acc);
        }
    });
}

template <class A, bool Backward>
void inner(const Triangle& s, const typename A::Sum* e1, const typename A::Sum* e2, const typename A::Sum* packed,
           const typename A::Sum* v1, const typename A::Sum* v2, const typename A::Sum* pull,
           const int32_t* ranges, int swapped, typename A::Sum* out, typename A::Sum* dv1, char* space, int threads) {
    using Sum = typename A::Sum;
    using Vector = typename A::Vector;
    constexpr long R = kTileRows;
    const long row = round_up(s.dim, A::kLanes), padded = round_up(s.first, R);
    long bytes = 0;
    InnerSpace<A>(nullptr, s, &bytes);
#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        const long me = omp_get_thread_num(), all = omp_get_num_threads();
#else
        const long me = 0, all = 1;
#endif
        const InnerSpace<A> w(space + me * bytes, s, nullptr), shared(space, s, nullptr);
        std::memset(w.out, 0, (s.first + 1) * row * sizeof(Sum));
        for (long i = me; i < s.rows; i += all)
            std::memset(out + i * (Backward ? s.first : row), 0, (Backward ? s.first : row) * sizeof(Sum));
#pragma omp barrier
        for (long l = 0; l < s.second; l += kDepth) {
            const long depth = s.second - l < kDepth ? s.second - l : kDepth;
            const auto one_row = [&](long i) {
                const int32_t* range = ranges + 4 * i;
                const long j0 = range[swapped ? 2 : 0], j1 = range[swapped ? 3 : 1];
                const long l0 = range[swapped ? 0 : 2], l1 = range[swapped ? 1 : 3];
                if (j0 >= j1 || l0 >= l + depth || l1 <= l) return;
                for (long k = 0; k < depth; ++k) {
                    const Sum factor = e2[i * s.second + l + k];
                    for (long c = 0; c < row; ++c) w.right[k * row + c] = factor * v2[(l + k) * row + c];
                }
                inner_block<A>(depth, packed + l * padded, w.right, row, j0, j1, [&](long j, long first, auto& acc) {
                    constexpr int V = std::extent_v<std::remove_reference_t<decltype(acc)>, 1>;
                    const long count = s.first - j < R ? s.first - j : R, at = first * A::kLanes;
                    if constexpr (!Backward) {
                        Vector sum[V];
                        for (int v = 0; v < V; ++v) sum[v] = *(Vector*)(out + i * row + at + v * A::kLanes);
#pragma GCC unroll 12
                        for (long r = 0; r < R; ++r) {
                            if (r >= count) break;
                            const Sum factor = e1[i * s.first + j + r];
#pragma GCC unroll 4
                            for (int v = 0; v < V; ++v)
                                sum[v] += factor * acc[r][v] * *(const Vector*)(v1 + (j + r) * row + at + v * A::kLanes);
                        }
                        for (int v = 0; v < V; ++v) *(Vector*)(out + i * row + at + v * A::kLanes) = sum[v];
                    } else {
#pragma GCC unroll 12
                        for (long r = 0; r < R; ++r) {
                            if (r >= count) break;
                            const Sum factor = e1[i * s.first + j + r];
                            Vector dot = {};
#pragma GCC unroll 4
                            for (int v = 0; v < V; ++v) {
                                const long c = at + v * A::kLanes;
                                const Vector pulled = acc[r][v] * *(const Vector*)(pull + i * row + c);
                                dot += pulled * *(const Vector*)(v1 + (j + r) * row + c);
                                *(Vector*)(w.out + (j + r) * row + c) += factor * pulled;
                            }
                            out[i * s.first + j + r] += sum_lanes((const Sum*)&dot, A::kLanes);
                        }
                    }
                });
            };
            if constexpr (Backward) {  // sums over i are stored per thread, so the rows of each thread must be fixed
                for (long i = me; i < s.rows; i += all) one_row(i);
            } else {  // rows are independent, so they are scheduled dynamically
#pragma omp for schedule(dynamic, 4)
                for (long i = 0; i < s.rows; ++i) one_row(i);
            }
        }
        if constexpr (Backward) {
#pragma omp barrier
            for (long j = s.first * me / all; j < s.first * (me + 1) / all; ++j)
                for (long c = 0; c < row; ++c) {
                    Sum total = 0;
                    for (long t = 0; t < all; ++t)
                        total += *(const Sum*)((const char*)(shared.out + j * row + c) + t * bytes);
                    dv1[j * row + c] = total;
                }
        }
    }
}

template <class A>
struct CrossSpace {
    using Sum = typename A::Sum;
    Sum *left, *right, *v2_columns;
    CrossSpace(char* base, const Triangle& s, long* bytes) {
        Arena arena{base};
        const long depth = kCrossRows * s.dim;
        left = arena.take<Sum>((s.first + kRowSlack) * depth);
        right = arena.take<Sum>(depth * kTileVectors * A::kLanes);
        v2_columns = arena.take<Sum>(s.dim * round_up(s.second, kTileVectors * A::kLanes));
        if (bytes) *bytes = arena.next - base;
    }
};

// Each thread processes a range of j's, so that no sum runs across threads.
template <class A>
void cross(const Triangle& s, const typename A::Sum* e1, const typename A::Sum* e2, const typename A::Sum* v1,
           const typename A::Sum* v2, const typename A::Sum* pull, typename A::Sum* out, char* space, int threads) {
    using Sum = typename A::Sum;
    using Vector = typename A::Vector;
    constexpr long R = kTileRows, V = kTileVectors, kPanel = V * A::kLanes;
    const long row = round_up(s.dim, A::kLanes), columns = round_up(s.second, kPanel);
    long bytes = 0;
    CrossSpace<A>(nullptr, s, &bytes);
#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        const long me = omp_get_thread_num(), all = omp_get_num_threads();
#else
        const long me = 0, all = 1;
#endif
        const CrossSpace<A> w(space + me * bytes, s, nullptr);
        const long groups = (s.first + R - 1) / R;
        const long from = groups * me / all * R, to = groups * (me + 1) / all * R;
        for (long c = 0; c < s.dim; ++c)
            for (long l = 0; l < columns; ++l) w.v2_columns[c * columns + l] = l < s.second ? v2[l * row + c] : Sum(0);
        for (long j = from; j < to && j < s.first; ++j) std::memset(out + j * columns, 0, columns * sizeof(Sum));
        for (long i = 0; i < s.rows; i += kCrossRows) {
            const long count = s.rows - i < kCrossRows ? s.rows - i : kCrossRows, depth = count * s.dim;
            for (long j = from; j < to; ++j)
                for (long k = 0; k < count; ++k) {
                    Sum* left = w.left + (j - from) * depth + k * s.dim;
                    const Sum factor = j < s.first ? e1[(i + k) * s.first + j] : Sum(0);
                    const Sum *value = v1 + (j < s.first ? j : 0) * row, *pulled = pull + (i + k) * row;
                    for (long c = 0; c < s.dim; ++c) left[c] = factor * value[c] * pulled[c];
                }
            for (long l = 0; l < s.second; l += kPanel) {
                const long wide = s.second - l < kPanel ? s.second - l : kPanel;
                for (long k = 0; k < count; ++k)
                    for (long c = 0; c < s.dim; ++c) {
                        Sum* right = w.right + (k * s.dim + c) * kPanel;
                        for (long x = 0; x < wide; ++x)
                            right[x] = e2[(i + k) * s.second + l + x] * w.v2_columns[c * columns + l + x];
                        for (long x = wide; x < kPanel; ++x) right[x] = 0;
                    }
                for (long j = from; j < to; j += R) {
                    Vector acc[R][V] = {};
                    register_tile<A, R, V>(acc, depth, w.left + (j - from) * depth, depth, 1, w.right, A::kLanes, kPanel);
                    for (long r = 0; r < R && j + r < s.first; ++r)
                        for (long v = 0; v < V; ++v)
                            *(Vector*)(out + (j + r) * columns + l + v * A::kLanes) += acc[r][v];
                }
            }
        }
    }
}

}  // namespace hc

extern "C" {
// Values, pull and out have rows padded to `hc_lanes` numbers with zeros, as does cross to `hc_panel`.
#define HC_STRASSEN(NAME, A)                                                                                        \
    long hc_lanes_##NAME() { return hc::A::kLanes; }                                                               \
    long hc_panel_##NAME() { return hc::kTileVectors * hc::A::kLanes; }                                            \
    long hc_strassen_packed_##NAME(long first, long second) {                                                      \
        return hc::round_up(first, hc::kTileRows) * second;                                                        \
    }                                                                                                              \
    void hc_strassen_pack_##NAME(const void* e12, void* packed, long j_step, long l_step, long first, long second, \
                                 long threads) {                                                                   \
        using Sum = hc::A::Sum;                                                                                    \
        hc::pack_left((const Sum*)e12, j_step, l_step, first, second, (Sum*)packed, (int)threads);                 \
    }                                                                                                              \
    long hc_strassen_inner_space_##NAME(long first, long dim) {                                                    \
        long bytes = 0;                                                                                            \
        hc::InnerSpace<hc::A>(nullptr, hc::Triangle{1, first, 1, dim}, &bytes);                                    \
        return bytes;                                                                                              \
    }                                                                                                              \
    long hc_strassen_cross_space_##NAME(long first, long second, long dim) {                                       \
        long bytes = 0;                                                                                            \
        hc::CrossSpace<hc::A>(nullptr, hc::Triangle{1, first, second, dim}, &bytes);                               \
        return bytes;                                                                                              \
    }                                                                                                              \
    void hc_strassen_forward_##NAME(const void* e1, const void* e2, const void* packed, const void* v1,            \
                                    const void* v2, const int32_t* ranges, void* out, void* space, long rows,      \
                                    long first, long second, long dim, long threads) {                             \
        using Sum = hc::A::Sum;                                                                                    \
        hc::inner<hc::A, false>(hc::Triangle{rows, first, second, dim}, (const Sum*)e1, (const Sum*)e2,            \
                                (const Sum*)packed, (const Sum*)v1, (const Sum*)v2, nullptr, ranges, 0,            \
                                (Sum*)out, nullptr, (char*)space, (int)threads);                                        \
    }                                                                                                              \
    void hc_strassen_backward_##NAME(const void* e1, const void* e2, const void* packed, const void* v1,           \
                                     const void* v2, const void* pull, const int32_t* ranges, void* da, void* dv1, \
                                     void* space, long rows, long first, long second, long dim, long swapped,      \
                                      long threads) {                                     \
        using Sum = hc::A::Sum;                                                                                    \
        hc::inner<hc::A, true>(hc::Triangle{rows, first, second, dim}, (const Sum*)e1, (const Sum*)e2,             \
                               (const Sum*)packed, (const Sum*)v1, (const Sum*)v2, (const Sum*)pull,               \
                               ranges, swapped, (Sum*)da, (Sum*)dv1, (char*)space, (int)threads);                       \
    }                                                                                                              \
    void hc_strassen_cross_##NAME(const void* e1, const void* e2, const void* v1, const void* v2,                  \
                                  const void* pull, void* out, void* space, long rows, long first, long second,    \
                                  long dim, long threads) {                                                        \
        using Sum = hc::A::Sum;                                                                                    \
        hc::cross<hc::A>(hc::Triangle{rows, first, second, dim}, (const Sum*)e1, (const Sum*)e2, (const Sum*)v1,   \
                         (const Sum*)v2, (const Sum*)pull, (Sum*)out, (char*)space, (int)threads);                      \
    }
HC_STRASSEN(float, Float)
HC_STRASSEN(double, Double)
}

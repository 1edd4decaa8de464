// Softmax attention for few queries and many keys, as in decoding with a cache: out_i = sum_j softmax_j(scale <q_i, k_j>) v_j.
//
// The kernel is bound by reading keys and values, so each is read once for all queries of a group, in its input dtype, and
// widened in registers. Keys are split into fixed runs whose results are merged by their maxima, so the work of one group
// is shared among threads and the result does not depend on the number of threads.
//
// Shapes: q (G, R, d), k (G, N, d), v (G, N, e), ranges (G, 1, 2, R), out (G, R, e), lse (G, R).
#include "simd.h"

namespace hc {

constexpr long kRun = 1024;  // keys per work item
constexpr long kKeys = 64;   // keys whose weights are computed at once
constexpr long kTogether = 4;  // queries that share a pass over the keys
constexpr double kToBits = 1.4426950408889634, kFromBits = 0.6931471805599453;

struct Decoding {
    long groups, rows, tokens, dim, v_dim;
    long runs() const { return (tokens + kRun - 1) / kRun; }
};

typedef float LooseFloat __attribute__((vector_size(kVectorBytes), aligned(4)));
typedef double LooseDouble __attribute__((vector_size(kVectorBytes), aligned(8)));

inline FloatVector load(const float* from) { return *(const LooseFloat*)from; }
inline DoubleVector load(const double* from) { return *(const LooseDouble*)from; }
#ifdef HC_BFLOAT16
inline FloatVector load(const uint16_t* from) {
    return (FloatVector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
}
#endif

template <class Vector, class Sum>
Sum total_of(Vector x, Sum) {
    Sum total = 0;
    for (unsigned lane = 0; lane < sizeof(Vector) / sizeof(Sum); ++lane) total += x[lane];
    return total;
}

// The sums over lanes of four vectors.
template <class Vector, class Sum>
void four_totals(const Vector (&x)[4], Sum* to) {
    for (int i = 0; i < 4; ++i) to[i] = total_of(x[i], Sum());
}
#if defined(__AVX512F__)
inline float total_of(FloatVector x, float) { return _mm512_reduce_add_ps((__m512)x); }
inline double total_of(DoubleVector x, double) { return _mm512_reduce_add_pd((__m512d)x); }
inline void four_totals(const FloatVector (&x)[4], float* to) {
    auto both = [](__m512 a, __m512 b) {
        return (FloatVector)_mm512_unpacklo_ps(a, b) + (FloatVector)_mm512_unpackhi_ps(a, b);
    };
    const FloatVector ac = both((__m512)x[0], (__m512)x[2]), bd = both((__m512)x[1], (__m512)x[3]);
    const FloatVector four = both((__m512)ac, (__m512)bd);  // every quarter: parts of a, b, c, d
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)four),
                                      _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)four, 1)));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
#endif

template <class A>
struct DecodingSpace {
    using Sum = typename A::Sum;
    long row;                     // numbers of a row of values, padded
    Sum *weights, *sums;          // per thread
    Sum *tops, *totals, *parts;   // shared by all threads: (group, run, query) and, for parts, channel
    DecodingSpace(char* base, const Decoding& s, long thread, long threads, long* bytes) {
        Arena arena{base};
        row = round_up(s.v_dim, A::kLanes);
        const long pieces = s.groups * s.runs() * s.rows;
        tops = arena.take<Sum>(pieces);
        totals = arena.take<Sum>(pieces);
        parts = arena.take<Sum>(pieces * row);
        for (long t = 0; t < threads; ++t) {
            Sum* own_weights = arena.take<Sum>(kTogether * kKeys);
            Sum* own_sums = arena.take<Sum>(kTogether * row);
            if (t == thread) weights = own_weights, sums = own_sums;
        }
        if (bytes) *bytes = arena.next - base;
    }
};

// The vectors that a dot product processes at a time and how it sums them. A bfloat16 product is exact in float.
template <class A>
struct Dot {
    static constexpr long kStep = A::kLanes;
    static typename A::Vector add(typename A::Vector sum, const typename A::Input* x, const typename A::Input* y) {
        return sum + load(x) * load(y);
    }
};
#ifdef HC_BFLOAT16
template <>
struct Dot<Bfloat16> {
    static constexpr long kStep = 32;
    static FloatVector add(FloatVector sum, const uint16_t* x, const uint16_t* y) {
        return (FloatVector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(x),
                                             (__m512bh)_mm512_loadu_si512(y));
    }
};
#endif

// factor <q_r, k_key> of Together queries with `count` keys, four keys at a time; writes up to three extra keys.
template <class A, int Together>
void dots(const Decoding& s, const typename A::Input* q, const typename A::Input* k, long count,
          typename A::Sum factor, typename A::Sum* to) {
    using Sum = typename A::Sum;
    using Vector = typename A::Vector;
    for (long key = 0; key < count; key += 4) {
        const typename A::Input* keys[4];
        for (long i = 0; i < 4; ++i) keys[i] = k + (key + i < count ? key + i : count - 1) * s.dim;
        Vector sum[Together][4] = {};
        long c = 0;
        for (; c + Dot<A>::kStep <= s.dim; c += Dot<A>::kStep)
            over_tile(sum, [&](int r, int i, Vector& x) { x = Dot<A>::add(x, q + r * s.dim + c, keys[i] + c); });
#pragma GCC unroll 4
        for (int r = 0; r < Together; ++r) {
            Sum totals[4];
            four_totals(sum[r], totals);
            for (long rest = c; rest < s.dim; ++rest)
                for (int i = 0; i < 4; ++i) totals[i] += widen(q[r * s.dim + rest]) * widen(keys[i][rest]);
            for (int i = 0; i < 4; ++i) to[r * kKeys + key + i] = factor * totals[i];
        }
    }
}

// sums += weights v for Together queries.
template <class A, int Together>
void weigh(const Decoding& s, const typename A::Sum* weights, const typename A::Input* v, long count, long row,
           typename A::Sum* sums) {
    using Vector = typename A::Vector;
    constexpr int V = kManyRegisters ? 4 : 2;
    long c = 0;
    auto panel = [&](auto width) {
        constexpr int W = decltype(width)::value;
        for (; c + W * A::kLanes <= s.v_dim; c += W * A::kLanes) {
            Vector acc[Together][W];
            over_tile(acc, [&](int r, int v_, Vector& x) { x = *(Vector*)(sums + r * row + c + v_ * A::kLanes); });
            for (long key = 0; key < count; ++key) {
                Vector x[W];
#pragma GCC unroll 4
                for (int i = 0; i < W; ++i) x[i] = load(v + key * s.v_dim + c + i * A::kLanes);
                over_tile(acc, [&](int r, int i, Vector& sum) { sum += weights[r * kKeys + key] * x[i]; });
            }
            over_tile(acc, [&](int r, int v_, Vector& x) { *(Vector*)(sums + r * row + c + v_ * A::kLanes) = x; });
        }
    };
    panel(std::integral_constant<int, V>{});
    panel(std::integral_constant<int, 1>{});
    for (; c < s.v_dim; ++c)
        for (int r = 0; r < Together; ++r)
            for (long key = 0; key < count; ++key)
                sums[r * row + c] += weights[r * kKeys + key] * widen(v[key * s.v_dim + c]);
}

// One run of keys for Together queries from `query`: their maxima, sums of weights and weighted values.
template <class A, int Together>
void one_run(const Decoding& s, const DecodingSpace<A>& w, long g, long run, long query, const typename A::Input* q,
             const typename A::Input* k, const typename A::Input* v, const int32_t* ranges, double scale) {
    using Sum = typename A::Sum;
    using Vector = typename A::Vector;
    const long end = (run + 1) * kRun < s.tokens ? (run + 1) * kRun : s.tokens;
    Sum top[Together], total[Together];
    for (int r = 0; r < Together; ++r) top[r] = -A::kNever, total[r] = 0;
    std::memset(w.sums, 0, Together * w.row * sizeof(Sum));
    for (long first = run * kRun; first < end; first += kKeys) {
        const long count = end - first < kKeys ? end - first : kKeys;
        bool any = false;
        for (int r = 0; r < Together; ++r)
            any |= ranges[query + r] < first + count && ranges[s.rows + query + r] > first;
        if (!any) continue;
        dots<A, Together>(s, q + (g * s.rows + query) * s.dim, k + (g * s.tokens + first) * s.dim, count,
                          (Sum)(scale * kToBits), w.weights);
        for (int r = 0; r < Together; ++r) {
            Sum* row = w.weights + r * kKeys;
            const long low = ranges[query + r] - first, high = ranges[s.rows + query + r] - first;
            Sum largest = top[r];
            for (long key = 0; key < kKeys; ++key) {
                if (key >= count || key < low || key >= high) row[key] = -A::kNever;
                largest = row[key] > largest ? row[key] : largest;
            }
            if (largest == -A::kNever) {  // the query attends to none of these keys
                std::memset(row, 0, kKeys * sizeof(Sum));
                continue;
            }
            if (largest > top[r]) {
                const Sum factor = (Sum)std::exp2((double)top[r] - (double)largest);
                total[r] *= factor;
                for (long c = 0; c < s.v_dim; ++c) w.sums[r * w.row + c] *= factor;
                top[r] = largest;
            }
            Vector sum = {};
            for (long key = 0; key < kKeys; key += A::kLanes) {
                const Vector p = exp2_of<5>(*(Vector*)(row + key) - largest);
                *(Vector*)(row + key) = p;
                sum += p;
            }
            total[r] += total_of(sum, Sum());
        }
        weigh<A, Together>(s, w.weights, v + (g * s.tokens + first) * s.v_dim, count, w.row, w.sums);
    }
    for (int r = 0; r < Together; ++r) {
        const long piece = (g * s.runs() + run) * s.rows + query + r;
        w.tops[piece] = top[r];
        w.totals[piece] = total[r];
        std::memcpy(w.parts + piece * w.row, w.sums + r * w.row, w.row * sizeof(Sum));
    }
}

template <class A>
void decode(const Decoding& s, const typename A::Input* q, const typename A::Input* k, const typename A::Input* v,
            const int32_t* ranges, double scale, typename A::Sum* out, typename A::Sum* lse, char* space, int threads) {
    using Sum = typename A::Sum;
#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        const long me = omp_get_thread_num(), all = omp_get_num_threads();
#else
        const long me = 0, all = 1;
#endif
        const DecodingSpace<A> w(space, s, me, all, nullptr);
        for (long piece = me; piece < s.groups * s.runs(); piece += all) {
            const long g = piece / s.runs(), run = piece % s.runs();
            const int32_t* range = ranges + g * 2 * s.rows;
            long query = 0;
            for (; query + kTogether <= s.rows; query += kTogether)
                one_run<A, kTogether>(s, w, g, run, query, q, k, v, range, scale);
            switch (s.rows - query) {
                case 3: one_run<A, 3>(s, w, g, run, query, q, k, v, range, scale); break;
                case 2: one_run<A, 2>(s, w, g, run, query, q, k, v, range, scale); break;
                case 1: one_run<A, 1>(s, w, g, run, query, q, k, v, range, scale); break;
                default: break;
            }
        }
#pragma omp barrier
        for (long i = me; i < s.groups * s.rows; i += all) {
            const long g = i / s.rows, first = g * s.runs() * s.rows + i % s.rows;
            Sum top = -A::kNever, total = 0;
            for (long run = 0; run < s.runs(); ++run) {
                const Sum other = w.tops[first + run * s.rows];
                top = other > top ? other : top;
            }
            for (long c = 0; c < s.v_dim; ++c) out[i * s.v_dim + c] = 0;
            for (long run = 0; run < s.runs(); ++run) {
                const long piece = first + run * s.rows;
                if (w.totals[piece] == 0) continue;
                const Sum factor = (Sum)std::exp2((double)w.tops[piece] - (double)top);
                total += factor * w.totals[piece];
                for (long c = 0; c < s.v_dim; ++c) out[i * s.v_dim + c] += factor * w.parts[piece * w.row + c];
            }
            lse[i] = total > 0 ? (Sum)((top + std::log2((double)total)) * kFromBits) : (Sum)-INFINITY;
            for (long c = 0; c < s.v_dim && total > 0; ++c) out[i * s.v_dim + c] /= total;
        }
    }
}

}  // namespace hc

extern "C" {
#define HC_PAIRWISE(NAME, A)                                                                                        \
    long hc_pairwise_space_##NAME(long groups, long rows, long tokens, long dim, long v_dim, long threads) {       \
        long bytes = 0;                                                                                            \
        hc::DecodingSpace<hc::A>(nullptr, hc::Decoding{groups, rows, tokens, dim, v_dim}, 0, threads, &bytes);     \
        return bytes;                                                                                              \
    }                                                                                                              \
    void hc_pairwise_##NAME(const void* q, const void* k, const void* v, const int32_t* ranges, void* out,         \
                            void* lse, void* space, long groups, long rows, long tokens, long dim, long v_dim,     \
                            double scale, long threads) {                                                          \
        using In = hc::A::Input;                                                                                   \
        using Sum = hc::A::Sum;                                                                                    \
        hc::decode<hc::A>(hc::Decoding{groups, rows, tokens, dim, v_dim}, (const In*)q, (const In*)k,              \
                          (const In*)v, ranges, scale, (Sum*)out, (Sum*)lse, (char*)space, (int)threads);          \
    }
HC_PAIRWISE(float, Float)
HC_PAIRWISE(double, Double)
#ifdef HC_BFLOAT16
HC_PAIRWISE(bfloat16, Bfloat16)
#endif
}

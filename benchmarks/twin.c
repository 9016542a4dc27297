/* The engine's request path in C: the yardstick of benchmarks/engine.py.
 *
 * The same model and the same work per request as gpusched/sim/engine.py: users who think, client and network time,
 * a random pod, one FIFO queue per pod, Triton instances with dynamic batching (no delay, preferred size = largest),
 * a host phase on the pod's CPU under its CFS quota, a GPU phase under processor sharing with switch loss, and the
 * same record (histogram, counters, start/latency/status of every request). Random streams, formulas and the order
 * of events are the engine's, so both produce the same latency histogram and the benchmark can insist on it.
 * Left out: all that happens once a second or less (pod life, metrics pipeline, HPA).
 *
 *     gcc -O3 -march=native -ffp-contract=off -shared -fPIC -o twin.so twin.c -lm
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BINS 256
#define CLOCK_HZ 1048576.0 /* users act on this grid */
#define INF INFINITY
enum { INACTIVE, THINKING, QUEUED, EXECUTING };
enum { DETERMINISTIC, LOGNORMAL, EXPONENTIAL };

typedef struct {
    uint64_t rng;
    double send_s, enqueue_s;
    int32_t next, state;
} User;

typedef struct {
    double t;
    int64_t user;
} Event;

typedef struct {
    double key;
    int32_t left, right;
} Node;

typedef struct {
    int32_t head, size;
} Instance;

/* A shared processor: virtual_s is the work every present job has received, rate what each receives per second. */
typedef struct {
    double virtual_s, last_s, rate;
    int32_t jobs, root;
    double capacity, per_job, shared_loss;
    double period_s, quota_s, period_end_s;
    int64_t throttled, edge_next;
    double used_s, busy_s;
} Resource;

typedef struct {
    uint64_t rng;
    int32_t head, tail, queued, in_flight, free;
} Pod;

/* Mirrored field by field in engine.py. */
typedef struct {
    double think_min_s, think_span_s, half_client_s, tail_median_s, tail_sigma, slo_s;
    double gpu_alpha_s, gpu_beta_s, gpu_sigma, host_alpha_s, host_beta_s;
    double cpu_limit, cfs_period_s, gpu_capacity, gpu_shared_loss;
    int64_t gpu_dist, users, pods, instances, max_batch, queue_size, is_open, record;
    uint64_t user_key;
    int64_t arrivals;
    const double *arrival_s;
    const uint64_t *user_rng, *pod_rng;
} Params;

typedef struct {
    double latency_sum_s, queue_sum_s, gpu_busy_s, cpu_used_s;
    int64_t completed, failed, slow, batches, in_flight, rows;
    const int64_t *histogram;
    const double *start_s, *latency_s;
    const int8_t *status;
} Result;

typedef struct {
    Params m;
    User *users;
    Event *heap;
    int64_t events, arrival, rows, room;
    int32_t free_slot;
    Pod *pods;
    Instance *instances;
    Node *nodes;
    Resource *resources; /* the pods' CPUs, then the GPU */
    double *tree_t;
    int32_t *tree_leaf;
    int32_t leaves;
    double latency_sum_s, queue_sum_s;
    int64_t completed, failed, slow, batches, in_flight;
    int64_t histogram[BINS];
    double *start_s, *latency_s;
    int8_t *status;
} Sim;

/* --- random streams: one splitmix64 counter per record --- */

static inline uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
}

static inline double uniform(uint64_t *rng) {
    *rng += 0x9E3779B97F4A7C15ULL;
    return ((double)(mix(*rng) >> 11) + 0.5) * 1.1102230246251565e-16;
}

static inline double normal(uint64_t *rng) {
    double p = uniform(rng), q = p < 1.0 - p ? p : 1.0 - p;
    if (q > 0.02425) {
        double c = p - 0.5, r = c * c;
        double above = (((((-3.969683028665376e01 * r + 2.209460984245205e02) * r - 2.759285104469687e02) * r
                          + 1.383577518672690e02) * r - 3.066479806614716e01) * r + 2.506628277459239e00) * c;
        double below = ((((-5.447609879822406e01 * r + 1.615858368580409e02) * r - 1.556989798598866e02) * r
                         + 6.680131188771972e01) * r - 1.328068155288572e01) * r + 1.0;
        return above / below;
    }
    double s = sqrt(-2.0 * log(q));
    double above = ((((-7.784894002430293e-03 * s - 3.223964580411365e-01) * s - 2.400758277161838e00) * s
                     - 2.549732539343734e00) * s + 4.374664141464968e00) * s + 2.938163982698783e00;
    double below = (((7.784695709041462e-03 * s + 3.224671290700398e-01) * s + 2.445134137142996e00) * s
                    + 3.754408661907416e00) * s + 1.0;
    return p < 0.5 ? above / below : -above / below;
}

/* --- shared processors --- */

static inline void set_rate(Resource *r) {
    if (r->period_s > 0.0) {
        r->rate = 1.0;
    } else if (r->jobs > 0) {
        double share = r->jobs == 1 ? r->capacity : r->capacity / ((1.0 + r->shared_loss) * r->jobs);
        r->rate = share < r->per_job ? share : r->per_job;
    }
}

static inline void resource_sync(Resource *r, double t) {
    double dt = t - r->last_s;
    r->last_s = t;
    if (r->jobs > 0) {
        if (!r->throttled) {
            r->virtual_s += dt * r->rate;
            r->used_s += dt * r->rate * r->jobs;
            r->quota_s -= dt * r->jobs;
        }
        r->busy_s += dt;
    }
    if (r->period_s > 0.0 && t >= r->period_end_s) {
        r->period_end_s += (floor((t - r->period_end_s) / r->period_s) + 1.0) * r->period_s;
        double spent = r->throttled ? 0.0 : r->jobs * (t - (r->period_end_s - r->period_s));
        r->quota_s = r->capacity * r->period_s - spent;
    }
}

static inline double resource_edge(const Resource *r) {
    if (r->period_s <= 0.0 || r->jobs == 0) return INF;
    if (r->throttled) return r->period_end_s;
    if (r->quota_s >= r->jobs * (r->period_end_s - r->last_s) - 1e-12)
        return r->jobs <= r->capacity ? INF : r->period_end_s;
    double spent_s = r->last_s + (r->quota_s > 0.0 ? r->quota_s : 0.0) / r->jobs;
    return spent_s < r->period_end_s ? spent_s : r->period_end_s;
}

static inline double resource_done(const Resource *r, const Node *nodes) {
    if (r->jobs == 0 || r->throttled) return INF;
    double left = nodes[r->root].key - r->virtual_s;
    return r->last_s + (r->period_s > 0.0 ? left : left / r->rate);
}

/* Skew heap, top down. */
static inline int32_t merge(Node *nodes, int32_t a, int32_t b) {
    if (a < 0) return b;
    if (b < 0) return a;
    if (nodes[b].key < nodes[a].key) { int32_t c = a; a = b; b = c; }
    int32_t root = a;
    for (;;) {
        int32_t right = nodes[a].right;
        nodes[a].right = nodes[a].left;
        if (right < 0) {
            nodes[a].left = b;
            return root;
        }
        if (nodes[b].key < nodes[right].key) { int32_t c = right; right = b; b = c; }
        nodes[a].left = right;
        a = right;
    }
}

static inline void resource_add(Resource *r, Node *nodes, int32_t node, double work_s, double t) {
    resource_sync(r, t);
    nodes[node] = (Node){r->virtual_s + work_s, -1, -1};
    r->root = r->jobs == 0 ? node : merge(nodes, r->root, node);
    r->jobs++;
    set_rate(r);
}

static inline int32_t resource_pop(Resource *r, Node *nodes, double t) {
    resource_sync(r, t);
    int32_t node = r->root;
    if (--r->jobs == 0) {
        r->root = -1;
        r->virtual_s = 0.0;
    } else {
        r->virtual_s = nodes[node].key;
        r->root = merge(nodes, nodes[node].left, nodes[node].right);
    }
    set_rate(r);
    return node;
}

/* --- event set: 4-ary heap of the users' next arrivals, tournament tree over the processors --- */

static inline void heap_push(Event *heap, int64_t n, double t, int64_t user) {
    int64_t k = n;
    while (k > 0) {
        int64_t parent = (k - 1) >> 2;
        if (heap[parent].t <= t) break;
        heap[k] = heap[parent];
        k = parent;
    }
    heap[k] = (Event){t, user};
}

static inline void heap_drop(Event *heap, int64_t n) {
    Event last = heap[--n];
    if (n == 0) last.t = INF;
    int64_t k = 0;
    for (;;) {
        int64_t child = 4 * k + 1, best = child, end = child + 4 < n ? child + 4 : n;
        if (child >= n) break;
        for (int64_t c = child + 1; c < end; c++)
            if (heap[c].t < heap[best].t) best = c;
        if (heap[best].t >= last.t) break;
        heap[k] = heap[best];
        k = best;
    }
    heap[k] = last;
}

static inline void tree_set(Sim *s, int32_t leaf, double t) {
    int32_t k = s->leaves + leaf;
    if (s->tree_t[k] == t) return;
    s->tree_t[k] = t;
    while (k > 1) {
        int32_t other = k ^ 1;
        if (s->tree_t[other] < t || (s->tree_t[other] == t && other < k)) {
            t = s->tree_t[other];
            leaf = s->tree_leaf[other];
        }
        k >>= 1;
        s->tree_t[k] = t;
        s->tree_leaf[k] = leaf;
    }
}

static inline int32_t bin_of(double x) {
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int64_t k = (bits >> 48) - ((1023 - 10) << 4);
    return k < 0 ? 0 : k >= BINS ? BINS - 1 : (int32_t)k;
}

static inline double on_grid(double t) { return floor(t * CLOCK_HZ + 0.5) / CLOCK_HZ; }

/* --- one simulation --- */

static void *zeros(size_t n, size_t size) { return calloc(n ? n : 1, size); }

Sim *twin_new(const Params *m) {
    Sim *s = zeros(1, sizeof(Sim));
    s->m = *m;
    int64_t slots = m->pods * m->instances;
    s->users = zeros(m->users, sizeof(User));
    s->heap = zeros(m->users + 1, sizeof(Event));
    s->pods = zeros(m->pods, sizeof(Pod));
    s->instances = zeros(slots, sizeof(Instance));
    s->nodes = zeros(slots, sizeof(Node));
    s->resources = zeros(m->pods + 1, sizeof(Resource));
    for (s->leaves = 2; s->leaves < m->pods + 1;) s->leaves *= 2;
    s->tree_t = zeros(2 * s->leaves, sizeof(double));
    s->tree_leaf = zeros(2 * s->leaves, sizeof(int32_t));
    for (int32_t k = 0; k < 2 * s->leaves; k++) {
        s->tree_t[k] = INF;
        s->tree_leaf[k] = k - s->leaves;
    }
    for (int64_t p = 0; p < m->pods; p++) {
        s->pods[p] = (Pod){.rng = m->pod_rng[p], .free = (int32_t)(p * m->instances)};
        for (int64_t k = 0; k < m->instances; k++)
            s->instances[p * m->instances + k].head = k + 1 < m->instances ? (int32_t)(p * m->instances + k + 1) : -1;
        s->resources[p] = (Resource){.root = -1, .capacity = m->cpu_limit, .per_job = 1.0, .period_s = m->cfs_period_s,
                                     .period_end_s = m->cfs_period_s, .quota_s = m->cpu_limit * m->cfs_period_s};
    }
    s->resources[m->pods] = (Resource){.root = -1, .capacity = m->gpu_capacity, .per_job = 1.0,
                                       .shared_loss = m->gpu_shared_loss};
    for (int64_t u = 0; u < m->users; u++) {
        s->users[u].rng = m->user_rng[u];
        if (m->is_open) {
            s->users[u].next = u + 1 < m->users ? (int32_t)(u + 1) : -1;
        } else {
            s->users[u].state = THINKING;
            double first_s = (m->think_min_s + m->think_span_s) * uniform(&s->users[u].rng) + m->half_client_s;
            heap_push(s->heap, s->events++, on_grid(first_s), u);
        }
    }
    if (m->is_open) heap_push(s->heap, s->events++, m->arrival_s[0] + m->half_client_s, -1);
    return s;
}

static void make_room(Sim *s, int64_t rows) {
    if (!s->m.record || s->rows + rows <= s->room) return;
    s->room = 2 * s->room + 65536 + rows;
    s->start_s = realloc(s->start_s, s->room * sizeof(double));
    s->latency_s = realloc(s->latency_s, s->room * sizeof(double));
    s->status = realloc(s->status, s->room);
}

static inline double gpu_work_s(const Params *m, Pod *pod, int32_t size) {
    double mean_s = m->gpu_alpha_s + m->gpu_beta_s * size;
    if (m->gpu_dist == LOGNORMAL)
        return mean_s * exp(m->gpu_sigma * normal(&pod->rng) - 0.5 * m->gpu_sigma * m->gpu_sigma);
    if (m->gpu_dist == EXPONENTIAL) return -mean_s * log(uniform(&pod->rng));
    return mean_s;
}

/* Answer a request; the user thinks, or the slot of an open load is free again. */
static inline void answer(Sim *s, int32_t u, double t, int8_t status) {
    const Params *m = &s->m;
    User *user = &s->users[u];
    double answer_s = t + m->half_client_s + m->tail_median_s * exp(m->tail_sigma * normal(&user->rng));
    double latency_s = answer_s - user->send_s;
    if (status == 0) {
        s->completed++;
        s->latency_sum_s += latency_s;
        s->histogram[bin_of(latency_s)]++;
        s->slow += latency_s > m->slo_s;
    } else {
        s->failed++;
    }
    if (m->record) {
        s->start_s[s->rows] = user->send_s;
        s->latency_s[s->rows] = latency_s;
        s->status[s->rows++] = status;
    }
    user->state = THINKING;
    if (m->is_open) {
        user->next = s->free_slot;
        s->free_slot = u;
    } else {
        double next_s = answer_s + m->think_min_s + m->think_span_s * uniform(&user->rng) + m->half_client_s;
        heap_push(s->heap, s->events++, on_grid(next_s), u);
    }
}

/* A request reaches the service; returns its pod, -1 if it was refused. */
static inline int32_t arrive(Sim *s, double t) {
    const Params *m = &s->m;
    int32_t u = (int32_t)s->heap[0].user;
    heap_drop(s->heap, s->events--);
    if (m->is_open) {
        u = s->free_slot;
        if (u >= 0) {
            s->free_slot = s->users[u].next;
            s->users[u].rng = mix(m->user_key + (uint64_t)s->arrival * 0xD1342543DE82EF95ULL);
        }
        if (++s->arrival < m->arrivals) heap_push(s->heap, s->events++, m->arrival_s[s->arrival] + m->half_client_s, -1);
        if (u < 0) {
            s->failed++;
            return -1;
        }
    }
    User *user = &s->users[u];
    user->send_s = t - m->half_client_s;
    user->next = -1;
    int32_t p = (int32_t)(uniform(&user->rng) * m->pods);
    if (p >= m->pods) p = (int32_t)m->pods - 1;
    Pod *pod = &s->pods[p];
    if (m->queue_size > 0 && pod->queued >= m->queue_size) {
        answer(s, u, t, 1);
        return -1;
    }
    user->enqueue_s = t;
    user->state = QUEUED;
    if (pod->queued == 0)
        pod->head = u;
    else
        s->users[pod->tail].next = u;
    pod->tail = u;
    pod->queued++;
    pod->in_flight++;
    s->in_flight++;
    return p;
}

/* Take the first requests of the queue as one batch onto a free instance; returns its node. */
static inline int32_t form_batch(Sim *s, Pod *pod, double t) {
    int32_t size = pod->queued < s->m.max_batch ? pod->queued : (int32_t)s->m.max_batch;
    int32_t node = pod->free, u = pod->head;
    Instance *instance = &s->instances[node];
    pod->free = instance->head;
    instance->head = pod->head;
    instance->size = size;
    for (int32_t k = 0; k < size; k++) {
        u = pod->head;
        s->users[u].state = EXECUTING;
        s->queue_sum_s += t - s->users[u].enqueue_s;
        pod->head = s->users[u].next;
    }
    s->users[u].next = -1;
    pod->queued -= size;
    return node;
}

void twin_run(Sim *s, double until) {
    const Params *m = &s->m;
    const int32_t P = (int32_t)m->pods, per_pod = (int32_t)m->instances;
    Resource *gpu = &s->resources[P];
    for (;;) {
        const double arrival_s = s->heap[0].t, t = arrival_s <= s->tree_t[1] ? arrival_s : s->tree_t[1];
        const int32_t leaf = s->tree_leaf[1];
        int32_t p = -1, node = -1, done = -1;
        if (t > until) break;
        int gpu_changed = 0;
        make_room(s, m->max_batch + 1);
        if (arrival_s <= t) {
            p = arrive(s, t);
        } else if (leaf < P) {
            Resource *r = &s->resources[leaf];
            p = leaf;
            if (r->edge_next) {
                int refilled = t >= r->period_end_s;
                resource_sync(r, t);
                r->throttled = !refilled;
            } else {
                node = resource_pop(r, s->nodes, t);
            }
        } else {
            int32_t ended = resource_pop(gpu, s->nodes, t);
            p = ended / per_pod;
            Instance *instance = &s->instances[ended];
            Pod *pod = &s->pods[p];
            gpu_changed = 1;
            done = instance->head;
            pod->in_flight -= instance->size;
            s->in_flight -= instance->size;
            s->batches++;
            instance->size = 0;
            instance->head = pod->free;
            pod->free = ended;
        }
        while (p >= 0) {
            Pod *pod = &s->pods[p];
            double host_s = 0.0;
            if (node < 0) {
                if (pod->free < 0 || pod->queued == 0) break;
                node = form_batch(s, pod, t);
                host_s = m->host_alpha_s + m->host_beta_s * s->instances[node].size;
            }
            if (host_s > 0.0) {
                resource_add(&s->resources[p], s->nodes, node, host_s, t);
            } else {
                resource_add(gpu, s->nodes, node, gpu_work_s(m, pod, s->instances[node].size), t);
                gpu_changed = 1;
            }
            node = -1;
        }
        while (done >= 0) {
            int32_t u = done;
            done = s->users[u].next;
            answer(s, u, t, 0);
        }
        if (p >= 0) {
            double end_s = resource_done(&s->resources[p], s->nodes), edge_s = resource_edge(&s->resources[p]);
            s->resources[p].edge_next = edge_s < end_s;
            tree_set(s, p, end_s < edge_s ? end_s : edge_s);
        }
        if (gpu_changed) tree_set(s, P, resource_done(gpu, s->nodes));
    }
    for (int32_t k = 0; k <= P; k++) resource_sync(&s->resources[k], until);
}

void twin_result(const Sim *s, Result *r) {
    *r = (Result){s->latency_sum_s, s->queue_sum_s, s->resources[s->m.pods].busy_s, 0.0, s->completed, s->failed,
                  s->slow, s->batches, s->in_flight, s->rows, s->histogram, s->start_s, s->latency_s, s->status};
    for (int64_t p = 0; p < s->m.pods; p++) r->cpu_used_s += s->resources[p].used_s;
}

void twin_free(Sim *s) {
    void *all[] = {s->users, s->heap, s->pods, s->instances, s->nodes, s->resources, s->tree_t, s->tree_leaf,
                   s->start_s, s->latency_s, s->status, s};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) free(all[k]);
}

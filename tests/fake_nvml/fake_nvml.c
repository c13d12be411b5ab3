/* A stand-in for NVIDIA's libnvidia-ml.so.1: it answers from a file, read again when it changed.
 *
 * FAKE_NVML_STATE names the file; fake_nvml/__init__.py writes it and is the description of its
 * lines. Without the file the driver is not loaded. Numbers of -1 mean "not supported".
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10,
    FUNCTION_NOT_FOUND = 13,
    GPU_IS_LOST = 15,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999,
};

enum { MAX_DEVICES = 32, MAX_INSTANCES = 8, MAX_PROCESSES = 4096, MAX_XIDS = 4096, MAX_RULES = 64 };

static const uint64_t XID_CRITICAL_ERROR = 8;
static const unsigned FLAG_NO_GPUS = 1;
static const uint64_t NOT_AVAILABLE = UINT64_MAX;
static const unsigned MEMORY_V2 = 0x02000028;
static const useconds_t LOOK_AGAIN_US = 2000;

struct memory {
    int64_t total, used, free, reserved;
};

struct instance {
    int is_there, gpu_instance, compute_instance;
    struct memory memory;
    char uuid[96], name[96];
};

struct device {
    int is_lost, mig_mode, lists_processes, has_events;
    struct memory memory;
    int64_t utilization, memory_utilization, temperature, power_mw, power_limit_mw;
    int64_t ecc_corrected, ecc_uncorrected;
    char uuid[96], bus_id[32], name[96];
    struct instance instances[MAX_INSTANCES];
};

struct process {
    int device, gpu_instance, compute_instance, is_compute;
    unsigned pid;
    int64_t used;
};

struct xid {
    int64_t sequence;
    int device, gpu_instance, compute_instance;
    uint64_t number;
};

struct rule {
    char function[64];
    int code, device;
};

struct state {
    char driver_version[80];
    int is_slow_to_load, devices, processes, xids, errors, hangs;
    struct device device[MAX_DEVICES];
    struct process process[MAX_PROCESSES];
    struct xid xid[MAX_XIDS];
    struct rule error[MAX_RULES], hang[MAX_RULES];
};

/* What an nvmlDevice_t points to; `slot` is -1 for the device itself. */
struct handle {
    int device, slot;
};

struct event_set {
    int64_t delivered;
    uint64_t types[MAX_DEVICES];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct state state, next;
static struct handle handles[MAX_DEVICES][1 + MAX_INSTANCES];
static char state_path[4096];
static struct stat state_stat;
static int is_loaded, initializations, event_sets;

static void die(const char *why, const char *line)
{
    fprintf(stderr, "fake_nvml: %s: %s\n", why, line);
    abort();
}

static int line_fails(int fields, int wanted, int at, int bound)
{
    return fields != wanted || at < 0 || at >= bound;
}

/* One line of the file; every line carries the whole of one thing. */
static void take(const char *line)
{
    int at = -1, slot = -1, fields;

    if (strncmp(line, "driver ", 7) == 0) {
        sscanf(line, "driver %79s", next.driver_version);
    } else if (strncmp(line, "device ", 7) == 0) {
        struct device d = {0};
        fields = sscanf(line,
                        "device %d %95s %31s %d %d %d %d %" SCNd64 " %" SCNd64 " %" SCNd64
                        " %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64
                        " %" SCNd64 " %" SCNd64 " %95[^\n]",
                        &at, d.uuid, d.bus_id, &d.is_lost, &d.mig_mode, &d.lists_processes,
                        &d.has_events, &d.memory.total, &d.memory.used, &d.memory.free,
                        &d.memory.reserved, &d.utilization, &d.memory_utilization, &d.temperature,
                        &d.power_mw, &d.power_limit_mw, &d.ecc_corrected, &d.ecc_uncorrected,
                        d.name);
        if (line_fails(fields, 19, at, MAX_DEVICES))
            die("bad device", line);
        next.device[at] = d;
        if (next.devices <= at)
            next.devices = at + 1;
    } else if (strncmp(line, "instance ", 9) == 0) {
        struct instance i = {.is_there = 1};
        fields = sscanf(line,
                        "instance %d %d %d %d %95s %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64
                        " %95[^\n]",
                        &at, &slot, &i.gpu_instance, &i.compute_instance, i.uuid, &i.memory.total,
                        &i.memory.used, &i.memory.free, &i.memory.reserved, i.name);
        if (line_fails(fields, 10, at, MAX_DEVICES) || slot < 0 || slot >= MAX_INSTANCES)
            die("bad instance", line);
        next.device[at].instances[slot] = i;
    } else if (strncmp(line, "process ", 8) == 0) {
        struct process p;
        fields = sscanf(line, "process %d %d %d %u %" SCNd64 " %d", &p.device, &p.gpu_instance,
                        &p.compute_instance, &p.pid, &p.used, &p.is_compute);
        if (line_fails(fields, 6, next.processes, MAX_PROCESSES))
            die("bad process, or too many", line);
        next.process[next.processes++] = p;
    } else if (strncmp(line, "xid ", 4) == 0) {
        struct xid x;
        fields = sscanf(line, "xid %" SCNd64 " %d %d %d %" SCNu64, &x.sequence, &x.device,
                        &x.gpu_instance, &x.compute_instance, &x.number);
        if (line_fails(fields, 5, next.xids, MAX_XIDS) || x.device < 0 || x.device >= MAX_DEVICES)
            die("bad xid, or too many", line);
        next.xid[next.xids++] = x;
    } else if (strncmp(line, "error ", 6) == 0) {
        struct rule r;
        fields = sscanf(line, "error %63s %d %d", r.function, &r.code, &r.device);
        if (line_fails(fields, 3, next.errors, MAX_RULES))
            die("bad error, or too many", line);
        next.error[next.errors++] = r;
    } else if (strncmp(line, "hang ", 5) == 0) {
        struct rule r = {.device = -1};
        fields = sscanf(line, "hang %63s", r.function);
        if (line_fails(fields, 1, next.hangs, MAX_RULES))
            die("bad hang, or too many", line);
        next.hang[next.hangs++] = r;
    } else if (strcmp(line, "slow to load\n") == 0) {
        next.is_slow_to_load = 1;
    } else {
        die("unknown line", line);
    }
}

static int is_same(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* Reads the file if it is another one than the last that was read. Called with the lock held. */
static void refresh(void)
{
    const char *path = getenv("FAKE_NVML_STATE");
    struct stat seen;
    char *line = NULL;
    size_t capacity = 0;
    FILE *file;

    if (path == NULL || stat(path, &seen) != 0) {
        is_loaded = 0;
        return;
    }
    if (is_loaded && strcmp(path, state_path) == 0 && is_same(&seen, &state_stat))
        return;
    file = fopen(path, "re");
    if (file == NULL || fstat(fileno(file), &seen) != 0)
        die("cannot read", path);
    memset(&next, 0, sizeof next);
    while (getline(&line, &capacity, file) != -1)
        take(line);
    free(line);
    fclose(file);
    state = next;
    state_stat = seen;
    snprintf(state_path, sizeof state_path, "%s", path);
    is_loaded = 1;
}

static int applies(const struct rule *rule, const char *function, int device)
{
    return (strcmp(rule->function, "*") == 0 || strcmp(rule->function, function) == 0) &&
           (rule->device == -1 || rule->device == device);
}

static int is_hanging(const char *function)
{
    for (int i = 0; i < state.hangs; i++)
        if (applies(&state.hang[i], function, -1))
            return 1;
    return 0;
}

static int error_of(const char *function, int device)
{
    for (int i = 0; i < state.errors; i++)
        if (applies(&state.error[i], function, device))
            return state.error[i].code;
    return SUCCESS;
}

static void pause_unlocked(void)
{
    pthread_mutex_unlock(&lock);
    usleep(LOOK_AGAIN_US);
    pthread_mutex_lock(&lock);
}

/* Takes the lock, waits while the function hangs, and says whether it may go on. */
static int begin(const char *function)
{
    int code;

    pthread_mutex_lock(&lock);
    refresh();
    while (is_loaded && is_hanging(function)) {
        pause_unlocked();
        refresh();
    }
    if (!is_loaded)
        return DRIVER_NOT_LOADED;
    code = error_of(function, -1);
    return code != SUCCESS ? code : initializations > 0 ? SUCCESS : UNINITIALIZED;
}

static int end(int code)
{
    pthread_mutex_unlock(&lock);
    return code;
}

struct subject {
    int at;
    struct device *device;
    struct instance *instance;
};

static int begin_device(const char *function, const struct handle *handle, struct subject *subject)
{
    int code = begin(function);

    if (code != SUCCESS)
        return code;
    if (handle == NULL || handle->device >= state.devices)
        return INVALID_ARGUMENT;
    subject->at = handle->device;
    subject->device = &state.device[handle->device];
    subject->instance = handle->slot < 0 ? NULL : &subject->device->instances[handle->slot];
    code = error_of(function, subject->at);
    if (code != SUCCESS)
        return code;
    if (subject->device->is_lost)
        return GPU_IS_LOST;
    if (subject->instance != NULL && !subject->instance->is_there)
        return INVALID_ARGUMENT;
    return SUCCESS;
}

static int give_text(const char *text, char *to, unsigned length)
{
    if (strlen(text) >= length)
        return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return SUCCESS;
}

static int give_number(const struct subject *subject, int64_t number, unsigned *to)
{
    if (subject->instance != NULL || number < 0)
        return NOT_SUPPORTED;
    *to = (unsigned)number;
    return SUCCESS;
}

/* The library and the system. */

/* What a library does before a program can call anything of it. */
__attribute__((constructor)) static void load(void)
{
    pthread_mutex_lock(&lock);
    refresh();
    while (is_loaded && state.is_slow_to_load) {
        pause_unlocked();
        refresh();
    }
    pthread_mutex_unlock(&lock);
}

int nvmlInitWithFlags(unsigned flags)
{
    int code = begin(__func__);

    if (code == UNINITIALIZED)
        code = SUCCESS;
    if (code == SUCCESS && state.devices == 0 && !(flags & FLAG_NO_GPUS))
        code = NOT_FOUND;
    if (code == SUCCESS)
        initializations++;
    return end(code);
}

int nvmlInit(void) { return nvmlInitWithFlags(0); }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void)
{
    int code = begin(__func__);

    if (initializations > 0)
        initializations--;
    return end(code);
}

const char *nvmlErrorString(int code)
{
    switch (code) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case NOT_SUPPORTED: return "Not Supported";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "An error of the fake driver";
    }
}

int nvmlSystemGetDriverVersion(char *version, unsigned length)
{
    int code = begin(__func__);

    return end(code != SUCCESS ? code : give_text(state.driver_version, version, length));
}

int nvmlSystemGetNVMLVersion(char *version, unsigned length)
{
    int code = begin(__func__);
    char text[96];

    snprintf(text, sizeof text, "12.%s", state.driver_version);
    return end(code != SUCCESS ? code : give_text(text, version, length));
}

static int cuda_version(const char *function, int *version)
{
    int code = begin(function);

    if (code == SUCCESS)
        *version = 12080;
    return end(code);
}

int nvmlSystemGetCudaDriverVersion(int *version) { return cuda_version(__func__, version); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { return cuda_version(__func__, version); }

/* Devices and what they are called. */

int nvmlDeviceGetCount_v2(unsigned *count)
{
    int code = begin(__func__);

    if (code == SUCCESS)
        *count = (unsigned)state.devices;
    return end(code);
}

int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }

static struct handle *handle_of(int device, int slot)
{
    struct handle *handle = &handles[device][1 + slot];

    handle->device = device;
    handle->slot = slot;
    return handle;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct handle **handle)
{
    int code = begin(__func__);

    if (code == SUCCESS && index >= (unsigned)state.devices)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS)
        code = error_of(__func__, (int)index);
    if (code == SUCCESS && state.device[index].is_lost)
        code = GPU_IS_LOST;
    if (code == SUCCESS)
        *handle = handle_of((int)index, -1);
    return end(code);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct handle **handle)
{
    int code = begin(__func__);

    if (code != SUCCESS)
        return end(code);
    for (int at = 0; at < state.devices; at++) {
        struct device *device = &state.device[at];
        if (strcmp(device->uuid, uuid) == 0) {
            *handle = handle_of(at, -1);
            return end(device->is_lost ? GPU_IS_LOST : SUCCESS);
        }
        for (int slot = 0; slot < MAX_INSTANCES; slot++)
            if (device->instances[slot].is_there && strcmp(device->instances[slot].uuid, uuid) == 0) {
                *handle = handle_of(at, slot);
                return end(SUCCESS);
            }
    }
    return end(NOT_FOUND);
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, struct handle **handle)
{
    int code = begin(__func__);

    if (code != SUCCESS)
        return end(code);
    for (int at = 0; at < state.devices; at++)
        if (strcasecmp(state.device[at].bus_id, bus_id) == 0) {
            *handle = handle_of(at, -1);
            return end(state.device[at].is_lost ? GPU_IS_LOST : SUCCESS);
        }
    return end(NOT_FOUND);
}

int nvmlDeviceGetIndex(const struct handle *handle, unsigned *index)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    if (code == SUCCESS)
        *index = (unsigned)(s.instance != NULL ? handle->slot : s.at);
    return end(code);
}

int nvmlDeviceGetMinorNumber(const struct handle *handle, unsigned *minor)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    return end(code != SUCCESS ? code : give_number(&s, s.at, minor));
}

int nvmlDeviceGetUUID(const struct handle *handle, char *uuid, unsigned length)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    if (code != SUCCESS)
        return end(code);
    return end(give_text(s.instance != NULL ? s.instance->uuid : s.device->uuid, uuid, length));
}

int nvmlDeviceGetName(const struct handle *handle, char *name, unsigned length)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    if (code != SUCCESS)
        return end(code);
    return end(give_text(s.instance != NULL ? s.instance->name : s.device->name, name, length));
}

struct pci_info {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
};

static int pci_info(const char *function, const struct handle *handle, struct pci_info *info)
{
    struct subject s;
    int code = begin_device(function, handle, &s);

    if (code == SUCCESS && s.instance != NULL)
        code = NOT_SUPPORTED;
    if (code != SUCCESS)
        return end(code);
    memset(info, 0, sizeof *info);
    strcpy(info->bus_id, s.device->bus_id);
    sscanf(info->bus_id, "%x:%x:%x", &info->domain, &info->bus, &info->device);
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "%04X:%02X:%02X.0",
             info->domain & 0xffff, info->bus & 0xff, info->device & 0xff);
    info->pci_device_id = 0x233010de;
    return end(SUCCESS);
}

int nvmlDeviceGetPciInfo_v3(const struct handle *handle, struct pci_info *info)
{
    return pci_info(__func__, handle, info);
}

int nvmlDeviceGetPciInfo_v2(const struct handle *handle, struct pci_info *info)
{
    return pci_info(__func__, handle, info);
}

/* What a device measures. */

struct memory_v1 {
    uint64_t total, free, used;
};

struct memory_v2 {
    unsigned version;
    uint64_t total, reserved, free, used;
};

static const struct memory *memory_of(const struct subject *s)
{
    return s->instance != NULL ? &s->instance->memory : &s->device->memory;
}

/* The first version counts what is reserved as used. */
int nvmlDeviceGetMemoryInfo(const struct handle *handle, struct memory_v1 *info)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);
    const struct memory *memory;

    if (code != SUCCESS)
        return end(code);
    memory = memory_of(&s);
    if (memory->total < 0)
        return end(NOT_SUPPORTED);
    info->total = (uint64_t)memory->total;
    info->free = (uint64_t)memory->free;
    info->used = (uint64_t)(memory->used + (memory->reserved < 0 ? 0 : memory->reserved));
    return end(SUCCESS);
}

int nvmlDeviceGetMemoryInfo_v2(const struct handle *handle, struct memory_v2 *info)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);
    const struct memory *memory;

    if (code != SUCCESS)
        return end(code);
    memory = memory_of(&s);
    if (memory->total < 0)
        return end(NOT_SUPPORTED);
    if (memory->reserved < 0)
        return end(FUNCTION_NOT_FOUND);
    if (info->version != MEMORY_V2)
        return end(ARGUMENT_VERSION_MISMATCH);
    info->total = (uint64_t)memory->total;
    info->reserved = (uint64_t)memory->reserved;
    info->free = (uint64_t)memory->free;
    info->used = (uint64_t)memory->used;
    return end(SUCCESS);
}

struct utilization {
    unsigned gpu, memory;
};

int nvmlDeviceGetUtilizationRates(const struct handle *handle, struct utilization *rates)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    if (code == SUCCESS)
        code = give_number(&s, s.device->utilization, &rates->gpu);
    if (code == SUCCESS)
        code = give_number(&s, s.device->memory_utilization, &rates->memory);
    return end(code);
}

int nvmlDeviceGetTemperature(const struct handle *handle, unsigned sensor, unsigned *celsius)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    if (code == SUCCESS && sensor != 0)
        code = INVALID_ARGUMENT;
    return end(code != SUCCESS ? code : give_number(&s, s.device->temperature, celsius));
}

struct temperature_v1 {
    unsigned version, sensor;
    int celsius;
};

int nvmlDeviceGetTemperatureV(const struct handle *handle, struct temperature_v1 *temperature)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    if (code == SUCCESS && temperature->version != 0x0100000c)
        code = ARGUMENT_VERSION_MISMATCH;
    if (code != SUCCESS)
        return end(code);
    return end(give_number(&s, s.device->temperature, (unsigned *)&temperature->celsius));
}

static int give_power(const char *function, const struct handle *handle, int is_limit, unsigned *to)
{
    struct subject s;
    int code = begin_device(function, handle, &s);

    if (code != SUCCESS)
        return end(code);
    return end(give_number(&s, is_limit ? s.device->power_limit_mw : s.device->power_mw, to));
}

int nvmlDeviceGetPowerUsage(const struct handle *handle, unsigned *milliwatts)
{
    return give_power(__func__, handle, 0, milliwatts);
}

int nvmlDeviceGetEnforcedPowerLimit(const struct handle *handle, unsigned *milliwatts)
{
    return give_power(__func__, handle, 1, milliwatts);
}

int nvmlDeviceGetPowerManagementLimit(const struct handle *handle, unsigned *milliwatts)
{
    return give_power(__func__, handle, 1, milliwatts);
}

/* `kind` 0 is corrected, 1 uncorrected; `counter` 0 is since the driver was loaded, 1 for life. */
int nvmlDeviceGetTotalEccErrors(const struct handle *handle, unsigned kind, unsigned counter,
                                uint64_t *count)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);
    int64_t number;

    if (code == SUCCESS && (kind > 1 || counter > 1))
        code = INVALID_ARGUMENT;
    if (code != SUCCESS)
        return end(code);
    number = kind == 0 ? s.device->ecc_corrected : s.device->ecc_uncorrected;
    if (s.instance != NULL || number < 0)
        return end(NOT_SUPPORTED);
    *count = counter == 1 ? (uint64_t)number : 0;
    return end(SUCCESS);
}

/* Who holds memory. */

struct process_info {
    unsigned pid;
    uint64_t used;
    unsigned gpu_instance, compute_instance;
};

static int list_processes(const char *function, const struct handle *handle, int is_compute,
                          unsigned *count, struct process_info *infos)
{
    struct subject s;
    int code = begin_device(function, handle, &s);
    unsigned found = 0, room = *count;

    if (code == SUCCESS && !s.device->lists_processes)
        code = NOT_SUPPORTED;
    if (code != SUCCESS)
        return end(code);
    for (int i = 0; i < state.processes; i++) {
        const struct process *p = &state.process[i];
        if (p->device != s.at || p->is_compute != is_compute)
            continue;
        if (s.instance != NULL && (p->gpu_instance != s.instance->gpu_instance ||
                                   p->compute_instance != s.instance->compute_instance))
            continue;
        if (infos != NULL && found < room)
            infos[found] = (struct process_info){
                .pid = p->pid,
                .used = p->used < 0 ? NOT_AVAILABLE : (uint64_t)p->used,
                .gpu_instance = (unsigned)p->gpu_instance,
                .compute_instance = (unsigned)p->compute_instance,
            };
        found++;
    }
    *count = found;
    return end(found > room ? INSUFFICIENT_SIZE : SUCCESS);
}

int nvmlDeviceGetComputeRunningProcesses_v3(const struct handle *handle, unsigned *count,
                                            struct process_info *infos)
{
    return list_processes(__func__, handle, 1, count, infos);
}

int nvmlDeviceGetComputeRunningProcesses_v2(const struct handle *handle, unsigned *count,
                                            struct process_info *infos)
{
    return list_processes(__func__, handle, 1, count, infos);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(const struct handle *handle, unsigned *count,
                                             struct process_info *infos)
{
    return list_processes(__func__, handle, 0, count, infos);
}

int nvmlDeviceGetGraphicsRunningProcesses_v2(const struct handle *handle, unsigned *count,
                                             struct process_info *infos)
{
    return list_processes(__func__, handle, 0, count, infos);
}

/* MIG: a device cut into instances. */

int nvmlDeviceGetMigMode(const struct handle *handle, unsigned *current, unsigned *pending)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    if (code == SUCCESS)
        code = give_number(&s, s.device->mig_mode, current);
    if (code == SUCCESS)
        *pending = *current;
    return end(code);
}

int nvmlDeviceGetMaxMigDeviceCount(const struct handle *handle, unsigned *count)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    if (code == SUCCESS)
        code = give_number(&s, s.device->mig_mode < 0 ? 0 : MAX_INSTANCES - 1, count);
    return end(code);
}

int nvmlDeviceGetMigDeviceHandleByIndex(const struct handle *handle, unsigned slot,
                                        struct handle **instance)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    if (code == SUCCESS && s.instance != NULL)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS && s.device->mig_mode != 1)
        code = NOT_SUPPORTED;
    if (code == SUCCESS && (slot >= MAX_INSTANCES || !s.device->instances[slot].is_there))
        code = NOT_FOUND;
    if (code == SUCCESS)
        *instance = handle_of(s.at, (int)slot);
    return end(code);
}

int nvmlDeviceIsMigDeviceHandle(const struct handle *handle, unsigned *is_mig)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    if (code == SUCCESS)
        *is_mig = s.instance != NULL;
    return end(code);
}

int nvmlDeviceGetGpuInstanceId(const struct handle *handle, unsigned *id)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    if (code == SUCCESS && s.instance == NULL)
        code = NOT_SUPPORTED;
    if (code == SUCCESS)
        *id = (unsigned)s.instance->gpu_instance;
    return end(code);
}

int nvmlDeviceGetComputeInstanceId(const struct handle *handle, unsigned *id)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    if (code == SUCCESS && s.instance == NULL)
        code = NOT_SUPPORTED;
    if (code == SUCCESS)
        *id = (unsigned)s.instance->compute_instance;
    return end(code);
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(const struct handle *handle, struct handle **device)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    if (code == SUCCESS && s.instance == NULL)
        code = INVALID_ARGUMENT;
    if (code == SUCCESS)
        *device = handle_of(s.at, -1);
    return end(code);
}

/* XIDs: a set hears of what happens after it was made, of each once. */

struct event_data {
    struct handle *device;
    uint64_t type, data;
    unsigned gpu_instance, compute_instance;
};

int nvmlEventSetCreate(struct event_set **set)
{
    int code = begin(__func__);

    if (code != SUCCESS)
        return end(code);
    *set = calloc(1, sizeof **set);
    if (*set == NULL)
        return end(UNKNOWN);
    event_sets++;
    for (int i = 0; i < state.xids; i++)
        if (state.xid[i].sequence > (*set)->delivered)
            (*set)->delivered = state.xid[i].sequence;
    return end(SUCCESS);
}

int nvmlEventSetFree(struct event_set *set)
{
    int code = begin(__func__);

    free(set);
    event_sets--;
    return end(code);
}

/* Not of NVML: what a test asks, also after the library was shut down. */
int fake_event_sets(void) { return event_sets; }

int nvmlDeviceGetSupportedEventTypes(const struct handle *handle, uint64_t *types)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    if (code == SUCCESS)
        *types = s.device->has_events ? XID_CRITICAL_ERROR | 3 : 0;
    return end(code);
}

int nvmlDeviceRegisterEvents(const struct handle *handle, uint64_t types, struct event_set *set)
{
    struct subject s;
    int code = begin_device(__func__, handle, &s);

    if (code == SUCCESS && (s.instance != NULL || !s.device->has_events))
        code = NOT_SUPPORTED;
    if (code == SUCCESS)
        set->types[s.at] |= types;
    return end(code);
}

static const struct xid *next_xid(const struct event_set *set)
{
    for (int i = 0; i < state.xids; i++)
        if (state.xid[i].sequence > set->delivered &&
            set->types[state.xid[i].device] & XID_CRITICAL_ERROR)
            return &state.xid[i];
    return NULL;
}

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int nvmlEventSetWait_v2(struct event_set *set, struct event_data *data, unsigned timeout_ms)
{
    int64_t deadline = now_ms() + timeout_ms;
    int code = begin(__func__);
    const struct xid *xid;

    if (code != SUCCESS)
        return end(code);
    while ((xid = next_xid(set)) == NULL && now_ms() < deadline) {
        pause_unlocked();
        refresh();
    }
    if (xid == NULL)
        return end(TIMEOUT);
    code = error_of(__func__, xid->device);
    if (code != SUCCESS)
        return end(code);
    set->delivered = xid->sequence;
    *data = (struct event_data){
        .device = handle_of(xid->device, -1),
        .type = XID_CRITICAL_ERROR,
        .data = xid->number,
        .gpu_instance = (unsigned)xid->gpu_instance,
        .compute_instance = (unsigned)xid->compute_instance,
    };
    return end(SUCCESS);
}

/* What other exporters ask, and no device here has. */

#define NOT_HERE(name)                                                                             \
    int name(const struct handle *handle)                                                          \
    {                                                                                              \
        struct subject s;                                                                          \
        int code = begin_device(__func__, handle, &s);                                             \
        return end(code != SUCCESS ? code : NOT_SUPPORTED);                                        \
    }

NOT_HERE(nvmlDeviceGetFanSpeed)
NOT_HERE(nvmlDeviceGetFanSpeed_v2)
NOT_HERE(nvmlDeviceGetClockInfo)
NOT_HERE(nvmlDeviceGetMaxClockInfo)
NOT_HERE(nvmlDeviceGetPcieThroughput)
NOT_HERE(nvmlDeviceGetEncoderUtilization)
NOT_HERE(nvmlDeviceGetDecoderUtilization)
NOT_HERE(nvmlDeviceGetBAR1MemoryInfo)
NOT_HERE(nvmlDeviceGetPerformanceState)
NOT_HERE(nvmlDeviceGetPersistenceMode)
NOT_HERE(nvmlDeviceGetComputeMode)
NOT_HERE(nvmlDeviceGetDisplayActive)
NOT_HERE(nvmlDeviceGetDisplayMode)
NOT_HERE(nvmlDeviceGetCurrentDriverModel)
NOT_HERE(nvmlDeviceGetNvLinkState)
NOT_HERE(nvmlDeviceGetProcessUtilization)
NOT_HERE(nvmlDeviceGetEccMode)
NOT_HERE(nvmlDeviceGetFieldValues)
NOT_HERE(nvmlDeviceGetTotalEnergyConsumption)

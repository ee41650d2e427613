/* A libnvidia-ml.so.1 with two GPUs, for tests. The file that VYVO_TEST_NVML names is read at every
   call: "1=15" makes GPU 1 answer error 15 (GPU is lost), "count=N" changes how many there are,
   "init=N", "memory=N", "utilization=N", "temperature=N" and "driver=N" make that call answer N. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int nvmlReturn_t;
typedef struct { int index; } *nvmlDevice_t;
static struct { int index; } devices[2] = {{0}, {1}};
static int open_count = 0;

static int knob(const char *name, int otherwise) {
    const char *path = getenv("VYVO_TEST_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[64];
    size_t length = strlen(name);
    int value = otherwise;
    if (!file) return value;
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, name, length) && line[length] == '=') value = atoi(line + length + 1);
    fclose(file);
    return value;
}

static nvmlReturn_t device_state(nvmlDevice_t device) {
    char name[2] = {(char)('0' + device->index), 0};
    if (open_count <= 0) return 1; /* NVML_ERROR_UNINITIALIZED */
    return knob(name, 0);
}

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    int code = knob("init", 0);
    (void)flags;
    if (!code) open_count++;
    return code;
}
nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
nvmlReturn_t nvmlShutdown(void) { return open_count-- > 0 ? 0 : 1; }
const char *nvmlErrorString(nvmlReturn_t code) {
    return code == 15 ? "GPU is lost" : code == 3 ? "Not Supported" : "some error";
}
nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned length) {
    snprintf(out, length, "570.86.15");
    return knob("driver", 0);
}
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)knob("count", 2);
    return 0;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    if (index > 1) return 2; /* NVML_ERROR_INVALID_ARGUMENT */
    *device = (nvmlDevice_t)&devices[index];
    return device_state(*device);
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *out, unsigned length) {
    snprintf(out, length, device->index ? "NVIDIA Stub B" : "NVIDIA Stub A");
    return device_state(device);
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *out, unsigned length) {
    snprintf(out, length, "GPU-0000000%d-aaaa-bbbb-cccc-000000000000", device->index);
    return device_state(device);
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, unsigned long long memory[3]) {
    unsigned long long gib = 1ULL << 30;
    memory[0] = device->index ? 24 * gib : 80 * gib; /* total, free, used */
    memory[2] = (unsigned long long)(device->index + 1) * gib;
    memory[1] = memory[0] - memory[2];
    return knob("memory", 0) ? knob("memory", 0) : device_state(device);
}
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, unsigned rates[2]) {
    rates[0] = device->index ? 5 : 42;
    rates[1] = 7;
    return knob("utilization", 0) ? knob("utilization", 0) : device_state(device);
}
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned *celsius) {
    *celsius = 61u + (unsigned)device->index;
    if (sensor != 0) return 2;
    return knob("temperature", 0) ? knob("temperature", 0) : device_state(device);
}

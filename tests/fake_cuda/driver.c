/* CUDA's driver with made-up GPUs: as much of libcuda.so.1 as tells in which order it shows them.
   MADE_UP_GPUS holds their UUIDs in CUDA's order; numbers in CUDA_VISIBLE_DEVICES choose. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char uuids[8][37];
static int count;

int cuInit(unsigned flags) {
  const char *all = getenv("MADE_UP_GPUS"), *visible = getenv("CUDA_VISIBLE_DEVICES");
  const int there = (strlen(all) + 1) / 37;
  char order[64] = "0,1,2,3,4,5,6,7";
  if (visible != NULL) strncpy(order, visible, sizeof order - 1);
  for (char *entry = strtok(order, ","); entry != NULL; entry = strtok(NULL, ",")) {
    const int number = atoi(entry);
    if (number >= there) break;
    strncpy(uuids[count++], all + 37 * number, 36);
  }
  return count ? 0 : 100; /* CUDA_ERROR_NO_DEVICE */
}

int cuDeviceGetCount(int *found) {
  *found = count;
  return 0;
}

int cuDeviceGet(int *device, int ordinal) {
  *device = ordinal;
  return 0;
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
  int byte = 0;
  for (const char *digit = uuids[device]; *digit; digit += 2) {
    if (*digit == '-') digit++;
    unsigned value;
    sscanf(digit, "%2x", &value);
    uuid[byte++] = value;
  }
  return 0;
}

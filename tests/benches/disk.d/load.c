// load: the first and only program of a guest that measures its disk /dev/vda, past its page cache, and prints one line
// per workload: "load NAME OPERATIONS MICROSECONDS". Requests are kept in flight by the kernel's asynchronous I/O, as many
// as the workload says. Built statically by the script beside it.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MOST_DEPTH 32

struct workload {
  const char *name;
  int write, random;
  unsigned bytes, depth, operations;
};

static const struct workload workloads[] = {
    {"random-read-4k-1", 0, 1, 4096, 1, 1500},          {"random-read-4k-32", 0, 1, 4096, 32, 3200},
    {"sequential-read-128k-1", 0, 0, 131072, 1, 200},   {"sequential-read-128k-32", 0, 0, 131072, 32, 400},
    {"random-write-4k-1", 1, 1, 4096, 1, 500},          {"random-write-4k-32", 1, 1, 4096, 32, 1000},
};

static void fail(const char *what) {
  perror(what);
  reboot(RB_AUTOBOOT);
}

static uint64_t now_us(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000ull + time.tv_nsec / 1000;
}

// xorshift64*: the same places in every run.
static uint64_t next_random(void) {
  static uint64_t state = 0x9e3779b97f4a7c15;
  state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
  return state * 0x2545f4914f6cdd1d;
}

static void run(const struct workload *load, int disk, uint64_t disk_bytes, char *buffers, unsigned operations) {
  aio_context_t context = 0;
  struct iocb requests[MOST_DEPTH], *batch[MOST_DEPTH];
  struct io_event events[MOST_DEPTH];
  unsigned begun = 0, ended = 0, ready = 0;
  uint64_t places = disk_bytes / load->bytes, place = 0;
  if (syscall(SYS_io_setup, MOST_DEPTH, &context)) fail("io_setup");
  for (unsigned i = 0; i < load->depth; i++) batch[ready++] = &requests[i];
  while (ended < operations) {
    for (unsigned i = 0; i < ready; i++) {
      unsigned slot = batch[i] - requests;
      place = load->random ? next_random() % places : (place + 1) % places;
      requests[slot] = (struct iocb){.aio_fildes = disk,
                                     .aio_lio_opcode = load->write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
                                     .aio_buf = (uintptr_t)(buffers + (size_t)slot * 131072),
                                     .aio_nbytes = load->bytes,
                                     .aio_offset = place * load->bytes};
      // One by one, as programs do that do not know what they will ask next.
      if (begun < operations) {
        struct iocb *one = batch[i];
        if (syscall(SYS_io_submit, context, 1, &one) != 1) fail("io_submit");
        begun++;
      }
    }
    long got = syscall(SYS_io_getevents, context, 1, load->depth, events, NULL);
    if (got < 1) fail("io_getevents");
    ready = 0;
    for (long i = 0; i < got; i++) {
      if (events[i].res != load->bytes) fail("a request failed");
      batch[ready++] = (struct iocb *)(uintptr_t)events[i].obj;
    }
    ended += got;
  }
  syscall(SYS_io_destroy, context);
}

int main(void) {
  uint64_t disk_bytes;
  if (mount("dev", "/dev", "devtmpfs", 0, NULL)) fail("mount");
  int console = open("/dev/console", O_RDWR);
  dup2(console, 1), dup2(console, 2);
  int disk = open("/dev/vda", O_RDWR | O_DIRECT);
  if (disk < 0 || ioctl(disk, BLKGETSIZE64, &disk_bytes)) fail("/dev/vda");
  char *buffers = aligned_alloc(4096, (size_t)MOST_DEPTH * 131072);
  for (size_t i = 0; i < (size_t)MOST_DEPTH * 131072; i += 4096) buffers[i] = 1;
  for (unsigned i = 0; i < sizeof workloads / sizeof *workloads; i++) {
    const struct workload *load = &workloads[i];
    run(load, disk, disk_bytes, buffers, load->depth * 4); // the first requests are slow
    uint64_t before = now_us();
    run(load, disk, disk_bytes, buffers, load->operations);
    printf("load %s %u %llu\n", load->name, load->operations, (unsigned long long)(now_us() - before));
    fflush(stdout);
  }
  reboot(RB_AUTOBOOT);
}

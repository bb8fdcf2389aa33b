// files: work with many small files. "files DIRECTORY COUNT" makes DIRECTORY, which must not be there, and prints a line for each
// workload, "load NAME OPERATIONS-PER-SECOND". Built statically by the script beside it, with PAUSE, the seconds to wait before
// each: the host writes what it was given to its disk meanwhile, and not while the next workload is measured.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static uint64_t now_us(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000ull + time.tv_nsec / 1000;
}

static char block[4096];

static void create(const char *name) {
  int file = open(name, O_CREAT | O_EXCL | O_WRONLY, 0644);
  if (file < 0 || write(file, block, sizeof block) != sizeof block || close(file)) fail(name);
}

static void look(const char *name) {
  struct stat found;
  if (stat(name, &found)) fail(name);
}

static void read_whole(const char *name) {
  int file = open(name, O_RDONLY);
  if (file < 0 || read(file, block, sizeof block) != sizeof block || close(file)) fail(name);
}

static void move(const char *name) {
  char other[32];
  snprintf(other, sizeof other, "%s.new", name);
  if (rename(name, other) || rename(other, name)) fail(name);
}

static void delete(const char *name) {
  if (unlink(name)) fail(name);
}

static void list(int count) {
  DIR *directory = opendir(".");
  struct dirent *entry;
  struct stat found;
  int entries = 0;
  if (!directory) fail("opendir");
  // As "ls -l" does it.
  while ((errno = 0, entry = readdir(directory))) {
    if (fstatat(dirfd(directory), entry->d_name, &found, AT_SYMLINK_NOFOLLOW)) fail("fstatat");
    entries++;
  }
  if (errno || entries != count + 2) fail("readdir");
  closedir(directory);
}

static void measure(const char *name, int count, void (*operation)(const char *)) {
  char file[32];
  uint64_t before, passed;
  sleep(PAUSE);
  before = now_us();
  if (operation)
    for (int i = 0; i < count; i++) snprintf(file, sizeof file, "file-%d", i), operation(file);
  else
    list(count);
  passed = now_us() - before;
  printf("load %s %llu\n", name, (unsigned long long)(count * 1000000ull / (passed ? passed : 1)));
}

int main(int argc, char **argv) {
  int count = argc == 3 ? atoi(argv[2]) : 0;
  if (count <= 0) return 2;
  if (mkdir(argv[1], 0755) || chdir(argv[1])) fail(argv[1]);
  measure("create", count, create);
  measure("stat", count, look);
  measure("list-and-stat", count, NULL);
  measure("open-and-read", count, read_whole);
  measure("rename-twice", count, move);
  measure("unlink", count, delete);
  if (rmdir(argv[1])) fail(argv[1]);
  return 0;
}

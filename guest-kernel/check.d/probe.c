/*
 * probe: checks what a shell cannot, one line each: "ok NAME" or "FAIL NAME". Run by `init` in the guest.
 *
 * A system call counts as there if it does not fail with ENOSYS; arguments are chosen so that it does nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/blkpg.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
#define AF_VSOCK_NUMBER 40
#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

static int failures;

static void report(const char *kind, const char *name, int good)
{
	int error = errno;

	if (good) {
		printf("ok %s %s\n", kind, name);
	} else {
		printf("FAIL %s %s: %s\n", kind, name, strerror(error));
		failures++;
	}
}

/* Runs `body` in a child and tells whether it returned 0. */
static int in_child(int (*body)(long), long argument)
{
	int status;
	pid_t child = fork();

	if (child == 0)
		_exit(body(argument) == 0 ? 0 : errno);
	if (child < 0 || waitpid(child, &status, 0) != child)
		return 0;
	errno = WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
	return errno == 0;
}

static void system_calls(void)
{
	static const struct { const char *name; long number; } calls[] = {
		{ "epoll_create1", SYS_epoll_create1 }, { "eventfd2", SYS_eventfd2 },
		{ "signalfd4", SYS_signalfd4 }, { "timerfd_create", SYS_timerfd_create },
		{ "timer_create", SYS_timer_create }, { "inotify_init1", SYS_inotify_init1 },
		{ "fanotify_init", SYS_fanotify_init }, { "io_setup", SYS_io_setup },
		{ "io_uring_setup", SYS_io_uring_setup }, { "memfd_create", SYS_memfd_create },
		{ "memfd_secret", 447 }, { "shmget", SYS_shmget }, { "semget", SYS_semget }, { "msgget", SYS_msgget },
		{ "mq_open", SYS_mq_open }, { "membarrier", SYS_membarrier }, { "rseq", 334 },
		{ "userfaultfd", SYS_userfaultfd }, { "name_to_handle_at", SYS_name_to_handle_at },
		{ "open_by_handle_at", SYS_open_by_handle_at }, { "flock", SYS_flock }, { "madvise", SYS_madvise },
		{ "fadvise64", SYS_fadvise64 }, { "process_vm_readv", SYS_process_vm_readv }, { "kcmp", SYS_kcmp },
		{ "setuid", SYS_setuid }, { "capset", SYS_capset }, { "pidfd_open", SYS_pidfd_open },
		{ "clone3", SYS_clone3 }, { "openat2", SYS_openat2 }, { "close_range", SYS_close_range },
		{ "fsopen", SYS_fsopen }, { "mount_setattr", SYS_mount_setattr }, { "cachestat", 451 },
		{ "seccomp", SYS_seccomp }, { "bpf", SYS_bpf }, { "swapon", SYS_swapon },
		{ "pkey_alloc", SYS_pkey_alloc }, { "getrandom", SYS_getrandom }, { "ptrace", SYS_ptrace },
		{ "perf_event_open", SYS_perf_event_open }, { "ioperm", SYS_ioperm },
	};

	report("system call", "futex", syscall(SYS_futex, &calls, 1L, 0L) == 0);	/* wakes nobody */
	for (size_t i = 0; i < LENGTH(calls); i++) {
		errno = 0;
		long result = syscall(calls[i].number, -1L, -1L, -1L, -1L, -1L, -1L);
		report("system call", calls[i].name, result >= 0 || errno != ENOSYS);
	}
}

static int enter(long flags) { return unshare((int)flags); }

static void namespaces(void)
{
	static const struct { const char *name; int flag; } kinds[] = {
		{ "mount", CLONE_NEWNS }, { "uts", CLONE_NEWUTS }, { "ipc", CLONE_NEWIPC }, { "user", CLONE_NEWUSER },
		{ "pid", CLONE_NEWPID }, { "network", CLONE_NEWNET }, { "cgroup", CLONE_NEWCGROUP }, { "time", CLONE_NEWTIME },
	};

	for (size_t i = 0; i < LENGTH(kinds); i++)
		report("namespace", kinds[i].name, in_child(enter, kinds[i].flag));
}

static void sockets(void)
{
	static const struct { const char *name; int family, type; } kinds[] = {
		{ "unix", AF_UNIX, SOCK_SEQPACKET }, { "ipv4", AF_INET, SOCK_STREAM }, { "ipv6", AF_INET6, SOCK_STREAM },
		{ "raw", AF_INET, SOCK_RAW }, { "packet", AF_PACKET, SOCK_RAW }, { "netlink", AF_NETLINK, SOCK_RAW },
		{ "vsock", AF_VSOCK_NUMBER, SOCK_STREAM },
	};

	for (size_t i = 0; i < LENGTH(kinds); i++) {
		int fd = socket(kinds[i].family, kinds[i].type, kinds[i].type == SOCK_RAW ? 1 : 0);
		if (fd < 0 && kinds[i].family == AF_NETLINK)
			fd = socket(AF_NETLINK, SOCK_RAW, 0);
		report("socket", kinds[i].name, fd >= 0);
		close(fd);
	}
}

/* getppid fails with EPERM under the filter. */
static int filtered(long unused)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { LENGTH(code), code };

	(void)unused;
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		return -1;
	if (syscall(SYS_getppid) == -1 && errno == EPERM)
		return 0;
	errno = EINVAL;
	return -1;
}

/* A cgroup whose device program denies everything: /dev/zero cannot be opened in it. */
static int device_denied(long unused)
{
	struct bpf_insn code[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr load = { .prog_type = BPF_PROG_TYPE_CGROUP_DEVICE, .insns = (unsigned long)code,
		.insn_cnt = LENGTH(code), .license = (unsigned long)"GPL" };
	union bpf_attr attach = { .attach_type = BPF_CGROUP_DEVICE };
	int group, program, members;

	(void)unused;
	if (mkdir("/sys/fs/cgroup/devices", 0755))
		return -1;
	group = open("/sys/fs/cgroup/devices", O_RDONLY | O_DIRECTORY);
	program = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load);
	members = open("/sys/fs/cgroup/devices/cgroup.procs", O_WRONLY);
	attach.target_fd = group;
	attach.attach_bpf_fd = program;
	if (group < 0 || program < 0 || members < 0 || syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof attach))
		return -1;
	if (write(members, "0", 1) != 1)
		return -1;
	if (open("/dev/zero", O_RDONLY) == -1 && errno == EPERM)
		return 0;
	errno = EINVAL;
	return -1;
}

/* As many partitions as an image has layers, made without any table on the disk: each a block long. */
static void partitions(const char *disk, int count)
{
	int fd = open(disk, O_RDWR | O_CLOEXEC), good = fd >= 0;

	for (int number = 1; good && number <= count; number++) {
		struct blkpg_partition partition = { .start = (number - 1) * 4096L, .length = 4096, .pno = number };
		struct blkpg_ioctl_arg request = { BLKPG_ADD_PARTITION, 0, sizeof partition, &partition };
		good = ioctl(fd, BLKPG, &request) == 0;
	}
	report("partitions", disk, good);
	close(fd);
}

/* A wrong permission bitmap would end this process with SIGSEGV. */
static int ring(long port)
{
	if (ioperm((unsigned long)port, 1, 1))
		return -1;
	outb(0, (unsigned short)port);
	return 0;
}

int main(void)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	system_calls();
	namespaces();
	sockets();
	report("seccomp", "filter", in_child(filtered, 0));
	report("cgroup", "device program", in_child(device_denied, 0));
	report("port", "ioperm", in_child(ring, 0x600));
	partitions("/dev/vda", 127);
	return failures != 0;
}

/*
 * count: a QEMU plugin that counts executed instructions by address, and writes "ADDRESS COUNT" lines, an address for
 * every 16 bytes of code, to the file given as out=FILE. The declarations repeat those of QEMU's qemu-plugin.h, version 1,
 * which distributions do not package.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define ADD_U64 0
#define BUCKETS 65536

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef uint64_t plugin_id;
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int, void *, uint64_t);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

EXPORT int qemu_plugin_version = 1;

struct counter {
	struct counter *next;
	uint64_t block, count;
};
static struct counter *table[BUCKETS];
static char *file;

static struct counter *counter_of(uint64_t address)
{
	uint64_t block = address / 16;
	struct counter **bucket = &table[block % BUCKETS], *counter;

	for (counter = *bucket; counter; counter = counter->next)
		if (counter->block == block)
			return counter;
	counter = calloc(1, sizeof *counter);
	if (!counter)
		abort();
	counter->block = block;
	counter->next = *bucket;
	return *bucket = counter;
}

static void translated(plugin_id id, struct qemu_plugin_tb *code)
{
	(void)id;
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(code); i++) {
		struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(code, i);
		struct counter *counter = counter_of(qemu_plugin_insn_vaddr(instruction));
		qemu_plugin_register_vcpu_insn_exec_inline(instruction, ADD_U64, &counter->count, 1);
	}
}

static void finished(plugin_id id, void *unused)
{
	FILE *output = fopen(file, "w");

	(void)id, (void)unused;
	if (!output)
		abort();
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct counter *counter = table[i]; counter; counter = counter->next)
			fprintf(output, "%llx %llu\n", (unsigned long long)counter->block * 16,
				(unsigned long long)counter->count);
	fclose(output);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int count, char **arguments)
{
	(void)info;
	if (count != 1 || strncmp(arguments[0], "out=", 4))
		return -1;
	file = strdup(arguments[0] + 4);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	qemu_plugin_register_atexit_cb(id, finished, NULL);
	return 0;
}

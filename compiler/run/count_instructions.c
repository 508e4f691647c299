/* A plugin of QEMU's user mode: how often each instruction of a range of addresses is executed.
 *
 *     qemu-aarch64 -plugin count_instructions.so,first=ADDRESS,bytes=SIZE,out=FILE PROGRAM
 *
 * FILE gets a line "address executions", both decimal, for each address that was executed. The counts
 * are exact and the same in every run: the emulator adds one where an instruction starts.
 *
 * The declarations below are those of qemu-plugin.h, version 1, which not every system installs.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

void qemu_plugin_register_vcpu_tb_trans_cb(
    qemu_plugin_id_t id, void (*call)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(
    qemu_plugin_id_t id, void (*call)(qemu_plugin_id_t, void *), void *data);
void qemu_plugin_register_vcpu_insn_exec_inline(
    struct qemu_plugin_insn *insn, enum qemu_plugin_op op, void *counter, uint64_t added);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = 1;

/* Instructions start at even addresses, those of Thumb included. */
enum { STEP = 2 };

static uint64_t first, bytes;
static const char *out;
static uint64_t *counters;

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(block, i);
        uint64_t offset = qemu_plugin_insn_vaddr(insn) - first;
        if (offset < bytes) {
            qemu_plugin_register_vcpu_insn_exec_inline(
                insn, QEMU_PLUGIN_INLINE_ADD_U64, &counters[offset / STEP], 1);
        }
    }
}

static void ended(qemu_plugin_id_t id, void *data)
{
    (void)id, (void)data;
    FILE *file = fopen(out, "w");
    if (!file) {
        perror(out);
        return;
    }
    for (uint64_t i = 0; i < bytes / STEP; i++) {
        if (counters[i]) {
            fprintf(file, "%" PRIu64 " %" PRIu64 "\n", first + i * STEP, counters[i]);
        }
    }
    fclose(file);
}

EXPORT int qemu_plugin_install(
    qemu_plugin_id_t id, const qemu_info_t *info, int count, char **options)
{
    (void)info;
    for (int i = 0; i < count; i++) {
        if (!strncmp(options[i], "first=", 6)) {
            first = strtoull(options[i] + 6, NULL, 0);
        } else if (!strncmp(options[i], "bytes=", 6)) {
            bytes = strtoull(options[i] + 6, NULL, 0);
        } else if (!strncmp(options[i], "out=", 4)) {
            out = strdup(options[i] + 4);
        }
    }
    counters = calloc(bytes / STEP + 1, sizeof *counters);
    if (!out || !counters) {
        fputs("count_instructions: wants first=ADDRESS,bytes=SIZE,out=FILE\n", stderr);
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}

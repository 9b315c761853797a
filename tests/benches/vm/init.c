// SPDX-License-Identifier: Apache-2.0
/* A first process that says so and ends the machine: the least that a boot can be. */
#include <sys/reboot.h>
#include <unistd.h>

int main(void) {
    if (write(1, "INIT\n", 5) == 5)
        reboot(RB_AUTOBOOT);
    return 1;
}

#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=dash disable=SC2013 # names of modules are words
# The first process of a VM that shows the host's files: writes stay in the VM's memory. It runs
# /job and ends the VM.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in $(awk '!seen[$2]++ { print $2 }' /usr/lib/modules/load); do insmod "$module"; done
mkdir -p /host /memory
mount -t virtiofs host /host
mount -t tmpfs memory /memory
mkdir /memory/upper /memory/work /memory/root
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work root /memory/root
cd /memory/root || exit
mount -t proc proc proc
mount -t sysfs sys sys
mount -t devtmpfs dev dev
mkdir -p dev/pts dev/shm
mount -t devpts -o ptmxmode=666 pts dev/pts
mount -t tmpfs shm dev/shm
mount -t tmpfs run run
mount -t cgroup2 cgroup sys/fs/cgroup
echo "+cpu +cpuset +io +memory +pids" >sys/fs/cgroup/cgroup.subtree_control
ip link set lo up
cp /job run/job
exec switch_root /memory/root /bin/sh -c \
    'sh /run/job </dev/null >/dev/ttyS0 2>&1; sync; echo b >/proc/sysrq-trigger'

#!/bin/sh
# Hear every event with the `nats` command line, bodies as JSON: ./nats.sh nats://127.0.0.1:4222 cli.seed
# Bodies are MessagePack; `--translate` hands each to a program of yours, here one line of Python.
# What `nats` is told besides, after the seed, goes to it as it is, say --count 10.
url=$1 seed=$2
shift 2
exec nats --server "$url" --nkey "$seed" --inbox-prefix _INBOX.cli sub 'airmesh.v1.events.>' \
  --translate "${PYTHON:-python3} -c 'import sys, msgspec; sys.stdout.buffer.write(msgspec.json.encode(msgspec.msgpack.decode(sys.stdin.buffer.read())))'" \
  "$@"

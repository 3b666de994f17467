#!/bin/sh
# Before a package manager removes the files. An upgrade also comes through here, and keeps the service: dpkg calls it with
# `upgrade`, rpm with the number of versions that remain.
case "${1:-}" in
  remove | purge | 0)
    if [ -d /run/systemd/system ]; then
      systemctl disable --now topicgate.service || true
    fi
    ;;
esac

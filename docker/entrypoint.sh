#!/bin/sh
# `docker run IMAGE serve` is how SageMaker starts a hosting container; anything else is a server
# of its own, with the arguments of `vizsla serve`. exec, so that SIGTERM reaches the server.
if [ "${1:-}" = serve ]; then
    shift
    exec vizsla serve --sagemaker "$@"
fi
exec vizsla serve "$@"

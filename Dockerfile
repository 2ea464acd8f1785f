# One image for both roles: `docker run ... bootstrap` and `docker run ... server`.
#
#   docker build -t hivemind-p2p .                           with torch: bootstrap and server
#   docker build -t hivemind-p2p --build-arg EXTRAS= .       without torch: bootstrap only, a fraction of the size
#
# BASE_IMAGE may be any Debian-like image; Python and certificates are added where it lacks them.
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS python
RUN if ! python3 -c 'import ensurepip, venv' || ! [ -e /etc/ssl/certs/ca-certificates.crt ]; then \
      apt-get update -qq && \
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates python3 python3-venv && \
      rm -rf /var/lib/apt/lists/*; \
    fi

FROM python AS build
ARG EXTRAS=torch
WORKDIR /src
COPY scripts/setup scripts/setup
COPY scripts/locks scripts/locks
COPY pyproject.toml README.md LICENSE ./
COPY hivemind_p2p hivemind_p2p
# Bytecode is made here because the node's user may not write it; the tools that installed the rest stay behind.
RUN UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1 scripts/setup --product /opt/hivemind-p2p ${EXTRAS} && \
    /opt/hivemind-p2p/bin/uv pip uninstall --quiet --python /opt/hivemind-p2p/bin/python pip uv

FROM python
RUN groupadd --gid 10001 node && \
    useradd --uid 10001 --gid node --no-create-home --home-dir /data --shell /usr/sbin/nologin node && \
    install -d -o node -g node -m 0700 /data
COPY --from=build /opt/hivemind-p2p /opt/hivemind-p2p
# Set where a node listens and who it is through these, not through options: the health check reads them too.
ENV PATH=/opt/hivemind-p2p/bin:$PATH \
    HIVEMIND_P2P_NODE__HOST_MADDRS=/ip4/0.0.0.0/tcp/31337 \
    HIVEMIND_P2P_NODE__IDENTITY_PATH=/data/identity
USER node
WORKDIR /data
VOLUME /data
EXPOSE 31337
HEALTHCHECK --interval=60s --timeout=15s --start-period=30s CMD ["hivemind-p2p", "ping"]
ENTRYPOINT ["hivemind-p2p"]
CMD ["--help"]

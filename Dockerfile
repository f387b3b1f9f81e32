# Two stages: the first has the compiler, the second has the binary and the system's root
# certificates, and runs as a user without rights.
#
#   docker build -t llmproxy .
#   docker run --rm -p 8000:8000 --ulimit nofile=65536 \
#       -v "$PWD/config.yaml:/etc/llmproxy/config.yaml:ro" -v llmproxy:/var/lib/llmproxy llmproxy
#
# Docker's default seccomp profile refuses io_uring: the proxy then runs on epoll and says so in
# its log and its metrics. For io_uring: --security-opt seccomp=deploy/docker/seccomp.json, which is
# that profile and the three calls of io_uring.
#
# deploy/compose runs it with an engine, Prometheus and Grafana.

# The version that rust-toolchain.toml names.
FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY . .
RUN cargo build --release --locked --bin llmproxy

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home --shell /usr/sbin/nologin --uid 10001 llmproxy \
    && install -d -o llmproxy -m 0700 /var/lib/llmproxy
COPY --from=build /build/target/release/llmproxy /usr/local/bin/llmproxy
COPY LICENSE /usr/share/doc/llmproxy/LICENSE
USER 10001
# ./data of the configuration: the journal of usage records, and the builtin store.
WORKDIR /var/lib/llmproxy
VOLUME /var/lib/llmproxy
EXPOSE 8000
# SIGTERM drains for up to server.drain_timeout (25 s): `docker stop` waits 10 s unless -t says more.
STOPSIGNAL SIGTERM
# Whether the process lives, not whether it has engines: no restart helps against a lack of those.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/llmproxy", "health", "--config", "/etc/llmproxy/config.yaml"]
ENTRYPOINT ["/usr/local/bin/llmproxy"]
CMD ["--config", "/etc/llmproxy/config.yaml"]

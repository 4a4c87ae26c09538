# The server on a processor: ONNX Runtime, no torch. From a clone:
#
#     docker build -t vizsla-server .
#     docker run --rm -p 127.0.0.1:8080:8080 --read-only --tmpfs /tmp \
#         -v "$PWD/runs/RUN/bundle:/model:ro" -v "$PWD/token:/run/secrets/token:ro" vizsla-server
#
# See docs/sagemaker-hosting.md for the token, for other arguments and for SageMaker.
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/vizsla
COPY docker/requirements.txt docker/requirements.txt
RUN /opt/vizsla/bin/pip install --no-cache-dir --no-deps -r docker/requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /opt/vizsla/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim
LABEL com.amazonaws.sagemaker.capabilities.multi-models=true
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
COPY --from=build /opt/vizsla /opt/vizsla
COPY docker/entrypoint.sh /opt/vizsla/entrypoint.sh
ENV PATH=/opt/vizsla/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
# A number needs no account, and tells Kubernetes that it is not root.
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as web; port = os.environ.get('SAGEMAKER_BIND_TO_PORT', '8080'); web.build_opener(web.ProxyHandler({})).open(f'http://127.0.0.1:{port}/ping', timeout=2)"]
ENTRYPOINT ["sh", "/opt/vizsla/entrypoint.sh"]
CMD ["/model", "--host", "0.0.0.0", "--token-file", "/run/secrets/token"]

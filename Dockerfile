# The fedfuse command with everything it needs: docker build -t fedfuse . && docker run fedfuse --help

FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY fedfuse fedfuse
COPY strategies strategies
COPY clients clients
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist . \
    && python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --constraint constraints.txt /dist/*.whl

FROM python:3.11-slim
COPY --from=build /venv /venv
RUN useradd --create-home --uid 1000 fedfuse
ENV PATH="/venv/bin:$PATH" PYTHONUNBUFFERED=1
USER fedfuse
WORKDIR /home/fedfuse
ENTRYPOINT ["fedfuse"]
CMD ["--help"]

FROM python:3.12-slim
# A wheel index for torch without CUDA makes the CPU image several GB smaller; empty means the default index.
ARG TORCH_INDEX=""
# The C compiler builds the CPU kernel below; on a GPU, Triton calls it when it launches its own.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 user
USER user
ENV HOME=/home/user PATH=/home/user/.local/bin:$PATH HF_HOME=/home/user/.cache/huggingface \
    GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860 GRADIO_ANALYTICS_ENABLED=False PYTHONUNBUFFERED=1
RUN mkdir -p /home/user/.cache /home/user/names
WORKDIR /home/user/app
COPY --chown=user requirements.txt constraints.txt ./
RUN pip install --no-cache-dir --user ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt -r requirements.txt
COPY --chown=user . .
RUN python -m kernels.native --all
EXPOSE 7860
CMD ["python", "app.py"]

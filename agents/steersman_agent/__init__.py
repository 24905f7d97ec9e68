"""Node agents: beside the GPUs, pushing what NVML and the engines say. Import only the generated protos."""

"""Metric pages as the engines write them (shortened by hand from their own formats)."""

TGI = """\
# TYPE tgi_request_count counter
tgi_request_count 57
# TYPE tgi_request_success counter
tgi_request_success 52
# TYPE tgi_batch_inference_count counter
tgi_batch_inference_count{method="prefill"} 52
tgi_batch_inference_count{method="decode"} 4016
# TYPE tgi_batch_inference_success counter
tgi_batch_inference_success{method="prefill"} 52
tgi_batch_inference_success{method="decode"} 4015
# TYPE tgi_queue_size gauge
tgi_queue_size 3
# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 5
# TYPE tgi_batch_current_max_tokens gauge
tgi_batch_current_max_tokens 6144
# TYPE tgi_request_input_length histogram
tgi_request_input_length_bucket{le="40.95"} 11
tgi_request_input_length_bucket{le="81.9"} 30
tgi_request_input_length_bucket{le="+Inf"} 57
tgi_request_input_length_sum 21034
tgi_request_input_length_count 57
# TYPE tgi_request_generated_tokens histogram
tgi_request_generated_tokens_bucket{le="+Inf"} 52
tgi_request_generated_tokens_sum 6912
tgi_request_generated_tokens_count 52
# TYPE tgi_request_queue_duration histogram
tgi_request_queue_duration_bucket{le="0.00015"} 0
tgi_request_queue_duration_sum 1.25
"""

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 7.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 2.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 0.25
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 1.20345e+06
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 88123.0
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 4.0
vllm:iteration_tokens_total_count{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 9014.0
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="4",running_lora_adapters="old",waiting_lora_adapters=""} 1.7e+09
vllm:lora_requests_info{max_lora="4",running_lora_adapters="sql,chat",waiting_lora_adapters="legal"} 1.8e+09
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="27000"} 1.0
"""

#: As vLLM's pull request 54830 writes them: a series for each adapter that is there, and no others.
VLLM_LOADED = (
    VLLM
    + """\
# HELP vllm:num_gpu_loaded_lora_adapters Number of LoRA adapters activated into GPU slots.
# TYPE vllm:num_gpu_loaded_lora_adapters gauge
vllm:num_gpu_loaded_lora_adapters{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 2.0
# TYPE vllm:num_cpu_loaded_lora_adapters gauge
vllm:num_cpu_loaded_lora_adapters{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 3.0
# TYPE vllm:lora_adapter_loaded gauge
vllm:lora_adapter_loaded{adapter_name="sql",engine="0",level="gpu",model_name="m",pinned="true"} 1.0
vllm:lora_adapter_loaded{adapter_name="idle",engine="0",level="gpu",model_name="m",pinned="false"} 1.0
vllm:lora_adapter_loaded{adapter_name="legal",engine="0",level="cpu",model_name="m",pinned="false"} 1.0
"""
)
VLLM_MODELS = b"""{"object":"list","data":[
{"id":"llama","object":"model","created":1764500000,"owned_by":"vllm","root":"/models/llama-3.1-8b",
 "parent":null,"max_model_len":8192,"permission":[]},
{"id":"sql","object":"model","created":1764500000,"owned_by":"vllm","root":"/adapters/sql",
 "parent":"llama","max_model_len":null,"permission":[]}]}"""

SGLANG = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="qwen",tp_rank="0"} 4.0
sglang:num_running_reqs{engine_type="unified",model_name="qwen",tp_rank="1"} 4.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="qwen",tp_rank="0"} 1.0
sglang:num_queue_reqs{engine_type="unified",model_name="qwen",tp_rank="1"} 1.0
# TYPE sglang:token_usage gauge
sglang:token_usage{engine_type="unified",model_name="qwen",tp_rank="0"} 0.5
# TYPE sglang:cache_config_info gauge
sglang:cache_config_info{engine_type="unified",model_name="qwen",num_pages="4000",page_size="64"} 1.0
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="qwen"} 8128.0
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{model_name="qwen"} 7557.0
# TYPE sglang:inter_token_latency_seconds histogram
sglang:inter_token_latency_seconds_bucket{le="0.002",model_name="qwen"} 0.0
sglang:inter_token_latency_seconds_count{model_name="qwen"} 7400.0
"""

LLAMACPP = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 377
# HELP llamacpp:tokens_predicted_total Number of generation tokens processed.
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 128
# HELP llamacpp:n_decode_total Total number of llama_decode() calls
# TYPE llamacpp:n_decode_total counter
llamacpp:n_decode_total 131
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
# HELP llamacpp:requests_deferred Number of requests deferred.
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 0
"""

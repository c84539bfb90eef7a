"""Chat templates of well-known families, written for the tests (after their published behaviour)."""

CHATML = """{% for message in messages %}{% if loop.first and message.role != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA3 = """{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}\
<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

GEMMA = """{{ bos_token }}{% if messages[0].role == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must alternate') }}{% endif %}\
<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}
{{ message.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

# The system message moves into the last user turn, as in Mistral's v3: earlier renders are no prefixes.
MISTRAL = """{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}\
{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}{{ bos_token }}\
{%- for message in turns %}{% if message.role == 'user' %}[INST]{% if system and loop.index0 >= turns | length - 2 %}\
 {{ system }}

{{ message.content }}[/INST]{% else %} {{ message.content }}[/INST]{% endif %}\
{% else %} {{ message.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"""

# As Qwen3: thoughts of answers before the last question are dropped, and the last answer always gets a block.
THINKING = """{%- set ns = namespace(last=-1) %}{% for message in messages %}{% if message.role == 'user' %}\
{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for message in messages %}\
{% if message.role == 'assistant' %}{% set thought = '' %}{% set content = message.content %}\
{% if message.reasoning_content is string %}{% set thought = message.reasoning_content %}\
{% elif '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}\
{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}<|im_start|>assistant
{% if loop.index0 > ns.last and (loop.last or thought) %}<think>
{{ thought.strip('\\n') }}
</think>

{{ content.lstrip('\\n') }}{% else %}{{ content }}{% endif %}\
{% if message.tool_calls %}{% for call in message.tool_calls %}
<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}{% endif %}<|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# As DeepSeek's distilled models: the generation prompt opens a thought that finished turns do not have.
OPENED = """{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}<|user|>{{ message.content }}\
{% elif message.role == 'assistant' %}<|assistant|>{{ message.content.split('</think>')[-1] }}{{ eos_token }}\
{% else %}{{ message.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|><think>
{% endif %}"""

# A template in plain words: no special token closes a turn.
PLAIN = """{% for message in messages %}{{ 'Human' if message.role == 'user' else 'Helper' }}: {{ message.content }}

{% endfor %}{% if add_generation_prompt %}Helper:{% endif %}"""

ALL = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "thinking": THINKING,
    "opened": OPENED,
    "plain": PLAIN,
}

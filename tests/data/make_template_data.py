#!/usr/bin/env python3
"""Chat templates with renderings by the Jinja2 library, as the truth for tokenizer/chat_template.c: templates.json.

usage: make_template_data.py OUT.json [NAME.jinja...]

Writes a list of {name, template, cases: [{messages, add_generation_prompt, expected}]}. Besides the files given, templates of
models that publish them in one line are written down here. strftime_now stands still at 2026-01-15 12:00. bos_token is "<s>",
eos_token "</s>". Cases in which a template raises are left out. Needs: jinja2."""
import datetime, json, pathlib, sys
import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime.datetime(2026, 1, 15, 12, 0, 0)
U = lambda t: {"role": "user", "content": t}
A = lambda t: {"role": "assistant", "content": t}
S = lambda t: {"role": "system", "content": t}
CASES = [
    ([U("Hello, who are you?")], True),
    ([S("You are terse."), U("2+2?")], True),
    ([U("Hi"), A("Hello! How can I help?"), U("Tell me a joke.")], True),
    ([S("  Answer in Korean.\n"), U("서울은 어디에 있나요?\n\n"), A(" 한국입니다. 🙂 "), U("\"quotes\" & <tags> \\ back")], True),
    ([U("Bye"), A("Goodbye!")], False),
    ([U("\u3000wide\u00a0"), A("<think>\nhm\n</think>\n\nYes."), U("Sure?"), A("<think>\nlet me see\n</think>\n\nQuite.")], False),
    ([S("Be kind."), U("a"), A("b"), U("c"), A("d")], False),
]
CHATML = ("{% for message in messages %}DEFAULT{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
DEFAULT = "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nTEXT<|im_end|>\\n' }}{% endif %}"
ALTERNATE = ("{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
             "user/assistant/user/assistant/...') }}{% endif %}")
KNOWN = {
    "chatml": CHATML.replace("DEFAULT", ""),
    "smollm2": CHATML.replace("DEFAULT", DEFAULT.replace("TEXT", "You are a helpful AI assistant named SmolLM, trained by Hugging Face")),
    "qwen1.5": CHATML.replace("DEFAULT", DEFAULT.replace("TEXT", "You are a helpful assistant")),
    "qwen2": CHATML.replace("DEFAULT", DEFAULT.replace("TEXT", "You are a helpful assistant.")),
    "hermes-bos": "{{bos_token}}" + CHATML.replace("DEFAULT", ""),
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
              "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
              + ALTERNATE + "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + "
              "'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' "
              "%}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' "
              "+ eos_token }}{% endif %}{% endfor %}",
    "llama3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + "
              "'<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
              "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "mistral-v0.1": "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}{{ '[INST] ' + "
              "message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}{% endif %}{% endfor %}",
    "mistral-v0.2": "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}{{ '[INST] ' + "
              "message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}",
    "mistral-v0.3": "{%- if messages[0][\"role\"] == \"system\" %}\n    {%- set system_message = messages[0][\"content\"] %}\n    {%- set loop_messages = "
              "messages[1:] %}\n{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n{{- bos_token }}\n{%- for message in loop_messages %}\n"
              "    {%- if message[\"role\"] == \"user\" %}\n        {%- if loop.last and system_message is defined %}\n            {{- \"[INST] \" + "
              "system_message + \"\\n\\n\" + message[\"content\"] + \"[/INST]\" }}\n        {%- else %}\n            {{- \"[INST] \" + message[\"content\"] "
              "+ \"[/INST]\" }}\n        {%- endif %}\n    {%- elif message[\"role\"] == \"assistant\" %}\n        {{- \" \" + message[\"content\"]|trim + "
              "eos_token}}\n    {%- endif %}\n{%- endfor %}\n",
    "gemma3": "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}\n"
              "    {%- set loop_messages = messages[1:] -%}\n{%- else -%}\n    {%- set first_user_prefix = \"\" -%}\n    {%- set loop_messages = messages "
              "-%}\n{%- endif -%}\n{%- for message in loop_messages -%}\n    {%- if (message['role'] == 'assistant') -%}\n        {%- set role = \"model\" "
              "-%}\n    {%- else -%}\n        {%- set role = message['role'] -%}\n    {%- endif -%}\n    {{ '<start_of_turn>' + role + '\n' + "
              "(first_user_prefix if loop.first else \"\") }}\n    {{- message['content'] | trim -}}\n    {{ '<end_of_turn>\n' }}\n{%- endfor -%}\n"
              "{%- if add_generation_prompt -%}\n    {{'<start_of_turn>model\n'}}\n{%- endif -%}\n",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif "
              "message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
              "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n"
              "{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
}

def environment():
    def raise_exception(message): raise jinja2.exceptions.TemplateError(message)
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda x, **options: json.dumps(x, ensure_ascii=False)
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: NOW.strftime(form)
    return env

def main():
    templates = dict(KNOWN)
    templates.update((pathlib.Path(p).stem, pathlib.Path(p).read_text()) for p in sys.argv[2:])
    result = []
    for name, text in templates.items():
        cases = []
        for messages, add in CASES:
            try:
                expected = environment().from_string(text).render(bos_token="<s>", eos_token="</s>", documents=None, tools=None,
                                                                  messages=messages, add_generation_prompt=add)
            except jinja2.exceptions.TemplateError as e:
                continue
            cases.append({"messages": messages, "add_generation_prompt": add, "expected": expected})
        result.append({"name": name, "template": text, "cases": cases})
        print(name, len(cases), "cases")
    pathlib.Path(sys.argv[1]).write_text(json.dumps(result, ensure_ascii=False, indent=0) + "\n")

main()

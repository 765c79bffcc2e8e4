/* chat.h - chat templates as data: recognised from the model's metadata, written without a template
 * engine. */
#ifndef CHAT_H
#define CHAT_H
#include "base.h"

/* The style a Jinja template text stands for: "chatml", "llama2", "llama3", "mistral" (7B Instruct
 * v0.1 and v0.2), "mistral-v3" (7B Instruct v0.3), or NULL. */
const char *chat_style(const char *jinja, size_t n);
/* As dibit_chat_text(), for a named style. The text has no BOS in front: tokenize it with
 * DIBIT_ADD_BOS | DIBIT_PARSE_SPECIAL. A default system message that some templates put in when
 * there is none is not. */
int64_t chat_text(const char *style, const DibitMessage *messages, size_t n, int add_reply,
                  char *buf, size_t cap, DibitError *err);
#endif

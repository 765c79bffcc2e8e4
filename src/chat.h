/* chat.h - chat templates as data: recognised from the model's metadata, written without a template
 * engine. */
#ifndef CHAT_H
#define CHAT_H
#include "base.h"

/* The style a Jinja template text stands for: "chatml", "llama2", "llama3", "mistral", or NULL. */
const char *chat_style(const char *jinja, size_t n);
/* As dibit_chat_text(), for a named style. */
int64_t chat_text(const char *style, const DibitMessage *messages, size_t n, int add_reply,
                  char *buf, size_t cap, DibitError *err);
#endif

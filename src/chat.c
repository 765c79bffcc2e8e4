/* chat.c - chat templates as rows of text pieces. What comes out equals what the models' own Jinja
 * templates give for system, user and assistant messages, without the BOS they begin with: that is
 * the tokenizer's to add (DIBIT_ADD_BOS). */
#include <string.h>
#include "chat.h"
#include "unicode.h"

typedef enum Place {
    SYSTEM_ANYWHERE,   // a message like the others
    SYSTEM_FIRST_USER, // only at index 0; its text goes into the first user message
    SYSTEM_LAST_USER   // only at index 0; into the last message, where that is a user's
} Place;

enum { SYSTEM, USER, ASSISTANT, N_ROLES };
static const char *const roles[N_ROLES] = { "system", "user", "assistant" };

typedef struct ChatStyle {
    const char *name;
    const char *before[N_ROLES], *after[N_ROLES];
    const char *next_turn; // in front of every user message but the first
    const char *reply;     // where the assistant's reply begins
    Place place;
    bool trim[N_ROLES]; // white space around the content is dropped
} ChatStyle;

#define LLAMA3_HEAD(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"

static const ChatStyle styles[] = {
    { "chatml",
      { "<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n" },
      { "<|im_end|>\n", "<|im_end|>\n", "<|im_end|>\n" },
      "",
      "<|im_start|>assistant\n",
      SYSTEM_ANYWHERE,
      { false, false, false } },
    { "llama2",
      { "<<SYS>>\n", "[INST] ", " " },
      { "\n<</SYS>>\n\n", " [/INST]", " </s>" },
      "<s>",
      "",
      SYSTEM_FIRST_USER,
      { false, true, true } },
    { "llama3",
      { LLAMA3_HEAD("system"), LLAMA3_HEAD("user"), LLAMA3_HEAD("assistant") },
      { "<|eot_id|>", "<|eot_id|>", "<|eot_id|>" },
      "",
      LLAMA3_HEAD("assistant"),
      SYSTEM_ANYWHERE,
      { true, true, true } },
    { "mistral", // 7B Instruct v0.1 and v0.2
      { "", " [INST] ", " " },
      { "\n\n", " [/INST]", "</s>" },
      "",
      "",
      SYSTEM_FIRST_USER,
      { false, false, false } },
    { "mistral-v3", // 7B Instruct v0.3
      { "", "[INST] ", " " },
      { "\n\n", "[/INST]", "</s>" },
      "",
      "",
      SYSTEM_LAST_USER,
      { false, false, true } },
};

/* ---- which style a template is ---- */

static bool contains(const char *s, size_t n, const char *what) {
    size_t len = strlen(what);
    for (size_t i = 0; len <= n && i <= n - len; i++)
        if (s[i] == what[0] && memcmp(s + i, what, len) == 0) return true;
    return false;
}

const char *chat_style(const char *jinja, size_t n) {
    if (contains(jinja, n, "<|im_start|>")) // two others use these marks without chatml's newlines
        return contains(jinja, n, "<|im_sep|>") || contains(jinja, n, "<end_of_utterance>")
                   ? NULL
                   : "chatml";
    if (contains(jinja, n, "<|start_header_id|>") && contains(jinja, n, "<|end_header_id|>"))
        return "llama3";
    if (!contains(jinja, n, "[INST]") || contains(jinja, n, "[SYSTEM_PROMPT]")) return NULL;
    if (contains(jinja, n, "<<SYS>>")) return "llama2";
    if (contains(jinja, n, " [/INST]")) return "mistral";
    return contains(jinja, n, "[INST] ") ? "mistral-v3" : NULL; // later ones have no space there
}

/* ---- writing ---- */

typedef struct Out {
    char *buf;
    size_t cap, n;
} Out;

static void put(Out *o, const char *s, size_t n) {
    if (o->n < o->cap) memcpy(o->buf + o->n, s, MIN(n, o->cap - o->n));
    o->n += n;
}

static void put_text(Out *o, const char *s) {
    put(o, s, strlen(s));
}

/* White space as Jinja's trim and Python's strip() know it. */
static bool is_space(uint32_t c) {
    return unicode_class(c) == CHAR_SPACE || (c >= 0x1c && c <= 0x1f);
}

static size_t skip_space(const char *s, size_t n) {
    size_t i = 0;
    uint32_t c;
    for (int len; i < n; i += (size_t)len) {
        len = utf8_scan((const uint8_t *)s + i, n - i, &c);
        if (len <= 0 || !is_space(c)) break;
    }
    return i;
}

/* The length without the white space at the end. */
static size_t end_trimmed(const char *s, size_t n) {
    while (n > 0) {
        size_t i = n - 1;
        uint32_t c;
        while (i > 0 && n - i < 4 && ((uint8_t)s[i] & 0xc0) == 0x80) i--;
        if (utf8_scan((const uint8_t *)s + i, n - i, &c) != (int)(n - i) || !is_space(c)) break;
        n = i;
    }
    return n;
}

/* A message; `system` is the system text that goes in front of its content, or NULL. Where user
 * text is trimmed, system text and content are trimmed as one. */
static void put_message(Out *o, const ChatStyle *c, int role, const char *system,
                        const char *content) {
    put_text(o, c->before[role]);
    size_t n = strlen(content), start = c->trim[role] && !system ? skip_space(content, n) : 0;
    if (c->trim[role]) n = MAX(start, end_trimmed(content, n));
    if (system) {
        const char *after = c->after[SYSTEM];
        bool ends_here = c->trim[role] && n == 0;
        put_text(o, c->before[SYSTEM]);
        put_text(o, system);
        put(o, after, ends_here ? end_trimmed(after, strlen(after)) : strlen(after));
    }
    put(o, content + start, n - start);
    put_text(o, c->after[role]);
}

/* ---- checks ---- */

static int find_role(const char *role) {
    for (int r = 0; role && r < N_ROLES; r++)
        if (strcmp(role, roles[r]) == 0) return r;
    return -1;
}

static int check_message(const ChatStyle *c, const DibitMessage *m, size_t i, bool has_system,
                         DibitError *err) {
    int role = find_role(m->role);
    if (role < 0)
        return fail(err, DIBIT_E_ARGUMENT,
                    "message %zu: role '%.40s' is not system, user or assistant", i,
                    m->role ? m->role : "NULL");
    if (!m->content) return fail(err, DIBIT_E_ARGUMENT, "message %zu: content is NULL", i);
    if (c->place == SYSTEM_ANYWHERE) return 0;
    if (role == SYSTEM)
        return i == 0
                   ? 0
                   : fail(err, DIBIT_E_ARGUMENT,
                          "message %zu: in %s a system message can only be the first", i, c->name);
    int want = (i - has_system) % 2 == 0 ? USER : ASSISTANT;
    if (role == want) return 0;
    return fail(
        err, DIBIT_E_ARGUMENT,
        "message %zu: in %s user and assistant take turns; here a message of role %s is due", i,
        c->name, roles[want]);
}

static const ChatStyle *find_style(const char *name) {
    for (size_t i = 0; name && i < ARRAY_LEN(styles); i++)
        if (strcmp(name, styles[i].name) == 0) return &styles[i];
    return NULL;
}

int64_t chat_text(const char *style, const DibitMessage *messages, size_t n, int add_reply,
                  char *buf, size_t cap, DibitError *err) {
    const ChatStyle *c = find_style(style);
    if (!c)
        return fail(
            err, DIBIT_E_ARGUMENT,
            "chat template '%.40s' is not one of chatml, llama2, llama3, mistral, mistral-v3",
            style ? style : "NULL");
    if (!messages || n == 0) return fail(err, DIBIT_E_ARGUMENT, "there are no messages");
    if (!buf && cap > 0) return fail(err, DIBIT_E_ARGUMENT, "buf is NULL");
    bool has_system = find_role(messages[0].role) == SYSTEM;
    for (size_t i = 0; i < n; i++) {
        int rc = check_message(c, &messages[i], i, has_system, err);
        if (rc < 0) return rc;
    }
    bool merged = has_system && c->place != SYSTEM_ANYWHERE;
    if (merged && n == 1)
        return fail(err, DIBIT_E_ARGUMENT, "in %s a system message needs a user message after it",
                    c->name);
    size_t first = merged, host = c->place == SYSTEM_FIRST_USER ? first : n - 1;
    Out out = { buf, cap ? cap - 1 : 0, 0 };
    for (size_t i = first; i < n; i++) {
        int role = find_role(messages[i].role);
        bool takes_system = merged && role == USER && i == host;
        if (role == USER && i > first) put_text(&out, c->next_turn);
        put_message(&out, c, role, takes_system ? messages[0].content : NULL, messages[i].content);
    }
    if (add_reply) put_text(&out, c->reply);
    if (cap) buf[MIN(out.n, cap - 1)] = 0;
    return (int64_t)out.n;
}

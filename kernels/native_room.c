/* Memory that a thread keeps from call to call, because asking the system for it each time costs more than a product of one row, and gives back at its end. */
#include "native.h"
#include <pthread.h>

struct held {
    void *at[PLACES];
    size_t size[PLACES];
};

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int without;

static void give_back(void *mine)
{
    for (int place = 0; place < PLACES; place++)
        free(((struct held *)mine)->at[place]);
    free(mine);
}

static void make(void) { without = pthread_key_create(&key, give_back); }

/* At least `wanted` bytes in one of this thread's places, whatever they hold; NULL where memory lacks. */
void *room(enum place place, size_t wanted)
{
    pthread_once(&once, make);
    struct held *mine = without ? NULL : pthread_getspecific(key);
    if (!mine && !without && (mine = calloc(1, sizeof *mine)) && pthread_setspecific(key, mine)) {
        free(mine);
        mine = NULL;
    }
    if (!mine)
        return NULL;
    if (mine->size[place] < wanted) {
        const size_t size = (wanted + 4095) / 4096 * 4096;
        free(mine->at[place]);
        mine->at[place] = aligned_alloc(64, size);
        mine->size[place] = mine->at[place] ? size : 0;
    }
    return mine->at[place];
}

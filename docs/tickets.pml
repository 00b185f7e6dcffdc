/* The queue of a name, as docs/design.md, "Order: tickets", has it: a model for spin(1), run by tests/test_model.py.
 *
 * N processes acquire, wait, give up, are killed, release, and come again, for ever. A step is one system call, and
 * stands below the function that makes it; the states are those of `bindlock.lock.decide.ACQUIRE`, and some between.
 * The whole is finite because the numbers of tickets are kept as ranks. In every state that can be reached:
 *
 *   two_holders   Never do two processes believe that they have the name.
 *   lost_wakeup   When the name is free and nobody is closing anything, the first in the queue is awake. And never is
 *                 somebody asleep, ticket or not, while the name is free and all others sleep or want nothing. Timers
 *                 may go off (the 30 s, the caller's time), but that they do is not relied upon.
 *   overtaken     With -DORDER, and lists that miss nothing: by later tickets that were asleep at a release, and woken
 *                 by it, a waiter is passed at most BOUND times; namely
 *                   -DWHO=woken   as often as it was asleep and woken itself by that very release;
 *                   -DWHO=first   while it has the head, however slow it is: once, if there are three.
 *
 * The last does not count who tries the name of its own accord between a release and the first waiter's bind: a
 * newcomer, one whose predecessor has just gone, one whose time is over. A release lets one of them pass at most; but
 * nothing bounds how many releases do. Nor is there a bound (-DWHO=anyone) for a waiter that is awake, and does not get
 * as far as binding the head: a chain of others that follow each other's tickets goes by until it does.
 *
 * Not in here: strangers, full queues, stopped processes, pauses (a refused connect is followed by a claim at once).
 * -DFAULT_... builds in a mistake, which one of the three must find.
 */
#ifndef N
#define N 3
#endif
#ifndef BOUND
#define BOUND 4        /* the least for three that are woken */
#endif
#ifndef WHO
#define WHO woken
#endif
#define NOBODY N
#define LOCK N         /* what one queues at: the ticket of a process, the lock, or a socket that is gone */
#define GONE (N + 1)

mtype:state = { IDLE, CLAIM, CLOCK, BIND, LISTEN, LIST, HEAD, HEAD_LISTEN, CONNECT, QUEUED, CLAIMED, FOLLOWED,
                PASSED, SPEND, STOW, SHUT, HEAD_CLOSE, HELD, LEAVE };
mtype:socket = { NONE, BOUND_ONLY, WAITING, SPENT, STOWED };

byte owner = NOBODY;   /* who has bound the name */
byte head = NOBODY;    /* who has bound the head */
bool listens, head_listens;  /* whether those sockets listen yet */
mtype:state at[N] = IDLE;
mtype:socket ticket[N] = NONE;
byte number[N];        /* of the ticket, as a rank; 0 without one */
byte place[N] = GONE;  /* CONNECT: where to queue; QUEUED: where it is queued */
bool called[N];        /* was asleep at the latest release, and woken by it */
byte passed[N];        /* how often others with later tickets were called and had the name, and it counts */
bool two_holders, lost_wakeup, overtaken;
hidden byte i, found, holders, sleepers, actors, closers;

#define each(statements) i = 0; do :: i < N -> statements; i++ :: else -> break od; i = 0
#define when(condition, statements) if :: condition -> statements :: else fi
#ifdef ORDER
#define ordered(statements) statements
#else
#define ordered(statements) skip
#endif

#define close_head() head = NOBODY; head_listens = false
#define asleep(p) (at[p] == QUEUED && place[p] != GONE)
#define has_it(s) (s == CLAIMED || s == FOLLOWED || s == PASSED || s == SPEND || s == STOW || s == SHUT \
                   || s == HEAD_CLOSE || s == HELD)
#define woken(p) called[p]
#define first(p) (head == p && head_listens)
#define anyone(p) true
#ifdef FAULT_ANY_NUMBER           /* the highest of the others, lower or not */
#define earlier(p) (ticket[p] == WAITING && p != me)
#else
#define earlier(p) (ticket[p] == WAITING && number[p] < number[me])
#endif
#ifdef FAULT_TICKET_OUTLIVES      /* a descriptor of it is left in the process when the lock is released */
#define to_close(p) (ticket[p] != NONE && ticket[p] != STOWED)
#elif defined(FAULT_TICKET_LEFT)  /* who gives up leaves its ticket open */
#define to_close(p) (ticket[p] != NONE && ticket[p] != WAITING && !(ticket[p] == STOWED && owner == p))
#else
#define to_close(p) (ticket[p] != NONE && !(ticket[p] == STOWED && owner == p))
#endif

inline verify() {
  holders = 0; sleepers = 0; actors = 0; closers = 0; found = NOBODY;
  each(
    when(has_it(at[i]), holders++);
    when(asleep(i), sleepers++);
    when(!asleep(i) && at[i] != IDLE, actors++);
    when(at[i] == LEAVE, closers++);
    when(ticket[i] == WAITING && (found == NOBODY || number[i] < number[found]), found = i));
  two_holders = holders > 1;
  assert(!two_holders);
  lost_wakeup = owner == NOBODY && (sleepers && !actors || !closers && found != NOBODY && asleep(found));
  assert(!lost_wakeup);
  holders = 0; sleepers = 0; actors = 0; closers = 0; found = 0
}

inline hang_up(socket, release) {
  /* The lock has one address for ever; a ticket has it once, so who is about to connect will be refused. */
  each(when(place[i] == socket && (at[i] == QUEUED || at[i] == CONNECT && socket != LOCK),
    place[i] = GONE;
    ordered(called[i] = release && at[i] == QUEUED)))
}

inline close_lock() {             /* unix_release_sock: first the name goes, then who is queued is hung up */
  owner = NOBODY; listens = false;
  ordered(each(called[i] = false));
  hang_up(LOCK, true)
}

inline close_ticket() {
  hang_up(me, ticket[me] == STOWED);
  ticket[me] = NONE;
  drop_number()
}

inline drop_number() {
  each(when(number[me] && number[i] > number[me], number[i]--));
  number[me] = 0;
  ordered(called[me] = false; passed[me] = 0)
}

inline next_number() {
  found = 0;
  each(when(number[i] > found, found = number[i]));
  number[me] = found + 1
}

inline find_before() {            /* tickets.waiting, tickets.before */
  found = LOCK;
  each(when(earlier(i) && (found == LOCK || number[i] > number[found]), found = i))
}

inline pass_others() {
  ordered(
    each(when(called[me] && number[i] && number[i] < number[me] && at[i] != LEAVE && WHO(i),
      passed[i]++; overtaken = passed[i] > BOUND; assert(!overtaken)));
    passed[me] = 0)
}

#ifdef FAULT_NO_HEAD
#define AFTER_LIST CONNECT
#define WHEN_FOLLOWED SPEND
#else
#define AFTER_LIST (place[me] == LOCK && head != me -> HEAD : CONNECT)
#define WHEN_FOLLOWED (head == me -> SPEND : PASSED)
#endif
#define AFTER_TICKET (head == me -> HEAD_CLOSE : HELD)
#define STEP(state, condition) :: d_step { at[me] == state && (condition) ->
#define TO(state) at[me] = state; verify() }
#define ROOM (place[me] == LOCK && owner != NOBODY && listens || place[me] < N && ticket[place[me] % N] == WAITING)

proctype Process(byte me) {
  do
  /* Processes at rest are all alike: of several in a row it is enough that the first one comes. */
  STEP(IDLE, me == 0 || at[(me + N - 1) % N] != IDLE) TO(CLAIM)

  /* Attempt._claim, Binding.bind */
  STEP(CLAIM, owner == NOBODY) owner = me; pass_others(); TO(CLAIMED)
  STEP(CLAIM, owner != NOBODY && !number[me]) TO(CLOCK)
  STEP(CLAIM, owner != NOBODY && !number[me]) place[me] = LOCK; TO(CONNECT)  /* no tickets to be had */
#ifdef FAULT_NOT_LISTED           /* back to the holder, without a look at the queue */
  STEP(CLAIM, owner != NOBODY && number[me]) place[me] = LOCK; TO(CONNECT)
#else
  STEP(CLAIM, owner != NOBODY && number[me]) TO(LIST)
#endif

  /* Attempt._take_ticket, Attempt._bind_ticket, tickets.addresses: the clock is read; by the bind others may have */
  STEP(CLOCK, true) next_number(); TO(BIND)
  STEP(BIND, true) ticket[me] = BOUND_ONLY; TO(LISTEN)
  STEP(LISTEN, true) ticket[me] = WAITING; TO(LIST)
  STEP(LIST, true) find_before(); place[me] = found; TO(AFTER_LIST)
#ifndef ORDER                     /* a list is not of one instant: it may have missed some, or all */
  STEP(LIST, earlier((me + 1) % N)) place[me] = (me + 1) % N; TO(CONNECT)
  STEP(LIST, earlier((me + 2) % N)) place[me] = (me + 2) % N; TO(CONNECT)
  STEP(LIST, true) place[me] = LOCK; TO(AFTER_LIST)
#endif

  /* Attempt._bind_head: who has it keeps it until the attempt ends; where another has it, that must do */
  STEP(HEAD, head == NOBODY) head = me; TO(HEAD_LISTEN)
  STEP(HEAD, head != NOBODY) TO(CONNECT)
  STEP(HEAD_LISTEN, true) head_listens = true; TO(CONNECT)

  /* Attempt._follow, Attempt._connect: nobody may listen there by now, and a spent ticket has no room in its queue */
  STEP(CONNECT, ROOM) ordered(called[me] = false); TO(QUEUED)
#if defined(FAULT_REFUSED_SLEEPS) || defined(FAULT_NAME_NOT_TRIED)
  STEP(CONNECT, !ROOM) place[me] = LOCK; TO(QUEUED)
#else
  STEP(CONNECT, !ROOM) place[me] = GONE; TO(CLAIM)
#endif

  /* block.run sleeps in queue.hung_up */
#ifdef FAULT_TICKET_IS_TRUSTED    /* the one before is gone, so it is our turn */
  STEP(QUEUED, place[me] == GONE) TO(CLAIMED)
#elif defined(FAULT_NAME_NOT_TRIED)
  STEP(QUEUED, place[me] == GONE) at[me] = (number[me] -> LIST : CLAIM); verify() }
#else
  STEP(QUEUED, place[me] == GONE) TO(CLAIM)
#endif
  STEP(QUEUED, asleep(me) && owner == NOBODY) place[me] = GONE; TO(CLAIM)  /* RETRY; or the caller's time is over */

  /* Binding.bind listens; queue.arrivals: it may be followed, or be no more, when that is acted upon */
  STEP(CLAIMED, !number[me]) listens = true; TO(HELD)
  STEP(CLAIMED, number[me]) listens = true; TO(FOLLOWED)
  STEP(FOLLOWED, true) TO(SHUT)
  STEP(FOLLOWED, true) TO(WHEN_FOLLOWED)
  /* Attempt._passed, queue.queue: is somebody else the head? */
  STEP(PASSED, true) TO((head_listens -> SHUT : SPEND))
  /* Binding.stow: marked first, then sent; or the kernel does not take it */
  STEP(SPEND, true) ticket[me] = SPENT; TO(STOW)
  STEP(STOW, true) ticket[me] = STOWED; drop_number(); TO(AFTER_TICKET)
  STEP(STOW, true) TO(SHUT)
  /* Attempt.end, Binding.close */
  STEP(SHUT, true) close_ticket(); TO(AFTER_TICKET)
  STEP(HEAD_CLOSE, true) close_head(); TO(HELD)

  /* A release, a kill, a time-out, an exception: sockets close in any order, but what is stowed after the lock */
  STEP(at[me], at[me] != IDLE && at[me] != LEAVE) place[me] = GONE; TO(LEAVE)
  STEP(LEAVE, owner == me) close_lock(); TO(LEAVE)
  STEP(LEAVE, to_close(me)) close_ticket(); TO(LEAVE)
  STEP(LEAVE, head == me) close_head(); TO(LEAVE)
  STEP(LEAVE, owner != me && head != me && !to_close(me)) drop_number(); TO(IDLE)
  od
}

init { atomic { each(run Process(i)) } }

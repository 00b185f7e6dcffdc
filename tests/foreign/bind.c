/* A single-instance check as C programs write it: bind NAME exact|padded stream|datagram [listen]
 * Says "bound", or "in use", and holds the name until it is killed or its input ends. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct sockaddr_un address;
    socklen_t size = sizeof(address);
    int type, own;
    char byte;

    if (argc < 4)
        return 64;
    memset(&address, 0, sizeof(address));
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path + 1, argv[1], sizeof(address.sun_path) - 2);
    if (strcmp(argv[2], "exact") == 0)
        size = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(address.sun_path + 1);
    type = strcmp(argv[3], "stream") == 0 ? SOCK_STREAM : SOCK_DGRAM;
    own = socket(AF_UNIX, type, 0);
    if (own < 0)
        return 71;
    if (bind(own, (struct sockaddr *)&address, size) < 0) {
        if (errno != EADDRINUSE)
            return 71;
        puts("in use");
        return 1;
    }
    if (argc > 4 && listen(own, 5) < 0)
        return 71;
    puts("bound");
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}

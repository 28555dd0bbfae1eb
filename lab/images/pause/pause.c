/*
 * pause: the process that holds a pod's namespaces open.
 *
 * It does nothing, must stay alive, leaves at once on TERM or INT, and reaps whatever is re-parented to it
 * when a pod shares one pid namespace (it is pid 1 there, where signals without a handler are ignored).
 * Build: cc -static -O2 pause.c -o pause
 */
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

static void leave(int signal_number)
{
	(void)signal_number;
	_exit(0);
}

static void reap(int signal_number)
{
	(void)signal_number;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

int main(void)
{
	struct sigaction on_leave = { .sa_handler = leave };
	struct sigaction on_child = { .sa_handler = reap, .sa_flags = SA_NOCLDSTOP | SA_RESTART };

	if (sigaction(SIGTERM, &on_leave, NULL) || sigaction(SIGINT, &on_leave, NULL) ||
	    sigaction(SIGCHLD, &on_child, NULL))
		return 1;
	for (;;)
		pause();
}

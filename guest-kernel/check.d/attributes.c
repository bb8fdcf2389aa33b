/*
 * attributes DIRECTORY: can files there have extended attributes and access control lists? On a read-only file system:
 * does DIRECTORY/file still have the attribute user.rvm that it was made with?
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

int main(int count, char **arguments)
{
	static const char *const names[] = { "user.test", "trusted.test", "security.test" };
	/* Version 2; user rw, user 1 r, group r, mask r, others none: in the form of linux/posix_acl_xattr.h. */
	static const unsigned char list[] = {
		2, 0, 0, 0,
		1, 0, 6, 0, 255, 255, 255, 255,  2, 0, 4, 0, 1, 0, 0, 0,  4, 0, 4, 0, 255, 255, 255, 255,
		16, 0, 4, 0, 255, 255, 255, 255,  32, 0, 0, 0, 255, 255, 255, 255,
	};
	char file[4096], value[8];
	int fd, failed = 0;

	if (count != 2)
		return 2;
	snprintf(file, sizeof file, "%s/attributes", arguments[1]);
	fd = open(file, O_CREAT | O_WRONLY, 0644);
	if (fd < 0 && errno == EROFS) {
		snprintf(file, sizeof file, "%s/file", arguments[1]);
		if (getxattr(file, "user.rvm", value, sizeof value) == 5)
			return 0;
	}
	if (fd < 0)
		return perror(file), 1;
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		if (setxattr(file, names[i], "value", 5, 0))
			printf("%s: %s; ", names[i], strerror(errno)), failed = 1;
	}
	if (setxattr(file, "system.posix_acl_access", list, sizeof list, 0))
		printf("ACL: %s", strerror(errno)), failed = 1;
	return failed;
}
